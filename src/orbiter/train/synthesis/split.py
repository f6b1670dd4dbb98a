"""Splits data into parts so that nothing leaks from one part into another.

Rows that belong together (one task, one episode, one ancestor, or nearly equal states) form a
group, and a group is never divided. Not supported: folds for cross-validation.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from orbiter.train.errors import ConfigError, DataError, boundary
from orbiter.train.seeding import sub_random, sub_seed
from orbiter.train.synthesis.comparison import Unit, Units, by_context, check_unit, units_of
from orbiter.train.synthesis.records import D, Records, Row, id_of, lineage_of, state_of, value_of
from orbiter.train.synthesis.similarity import Measure, crossing, ties

H = TypeVar("H", bound=Hashable)
L = TypeVar("L", bound=Hashable)
Key: TypeAlias = str | Callable[[Row], Hashable]
LINEAGE = "lineage"
"""Groups a row with its ancestors and all rows derived from them."""
LONG_OPENING = 8
"""The fewest words by which the opening of an episode identifies its task; "Hello" does not."""
DEFAULT_GROUPS: tuple[Key, ...] = ("task_id", "episode_id", LINEAGE)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class SplitReport:
    """The result of a split; passed in empty and filled by `split_dataset`."""

    sizes: tuple[int, ...] = ()
    """The number of rows in each part."""
    ratios: tuple[float, ...] = ()
    """The share of all rows in each part."""
    groups: int = 0
    """The number of groups, single rows included."""
    biggest_group: int = 0
    """The number of rows in the biggest group."""
    leaked: int = 0
    """Keys that occur in more than one part, plus states similar to one in an earlier part; checked
    again on the finished parts, and always 0."""


def split_dataset(
    data: D,
    ratios: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    seed: int = 0,
    group_by: Sequence[Key] = DEFAULT_GROUPS,
    near_duplicates: float | Fraction | None = 0.8,
    unit: Unit = "episode",
    stratify: Key | None = None,
    method: Literal["exact", "hash"] = "exact",
    report: SplitReport | None = None,
) -> list[D]:
    """Return one part per ratio; each part keeps the kind and the order of the data.

    Groups are placed largest first, each into the part that needs most rows; single rows then fill
    every part up to its size by largest remainder. With a few large groups the sizes are only
    approximate. Every part with a ratio above 0 gets at least one group.

    Args:
        data: a `TrajectoryDataset`, a list of `TrajectoryItem` or a list of mappings.
        ratios: the share of each part; not negative, with sum 1.
        seed: the same seed always gives the same parts.
        group_by: the keys that keep rows together: names of fields or metadata entries, "lineage",
            or functions of the row. A row without a key is not grouped by it.
        near_duplicates: units whose states reach this similarity (as for `deduplicate`) stay
            together, and so do units connected through others; None compares no texts. Episodes of
            several steps also stay together if their openings reach it: the text that the first
            step adds to the instructions, if that is at least `LONG_OPENING` words.
        unit: "episode" keeps the rows of an episode together and compares what its steps add;
            "step" compares single rows by what they add; "text" by their whole states.
        stratify: every part gets its share of each value of this key.
        method: "exact" meets the ratios. "hash" places each group by the name of its first row
            alone, so that rows added at the end move no existing row, unless they connect two
            groups; the ratios are met on average, and a part may stay empty.
        report: filled with the result.

    Raises:
        ConfigError: the ratios, the method or the similarity is invalid.
        DataError: there are enough rows, but fewer groups than parts.
    """
    _check(ratios, method)
    records = Records.of(data)
    keys = [_values(records.rows, key) for key in group_by]
    check_unit(unit)
    views, members = _comparisons(records.rows, unit, near_duplicates)
    group_of = _groups(len(records), keys, members, views)
    if method == "hash":
        part_of = _by_hash(records.rows, group_of, keys, ratios, seed)
    else:
        labels = _values(records.rows, stratify) if stratify else [None] * len(records)
        part_of = assign_parts(group_of, labels, ratios, seed=seed)
    if report is not None:
        _fill(report, group_of, part_of, ratios)
        # From the finished parts, so that a fault in the grouping would show.
        report.leaked = _leaks(part_of, keys)
        report.leaked += sum(_close(part_of, view) for view in views)
    indices: list[list[int]] = [[] for _ in ratios]
    for index, part in enumerate(part_of):
        indices[part].append(index)
    return [records.take(chosen) for chosen in indices]


def _check(ratios: Sequence[float], method: str) -> None:
    if not ratios or any(not 0 <= ratio <= 1 for ratio in ratios):
        raise ConfigError(f"ratios must be one or more shares in [0, 1], got {list(ratios)}")
    # 0.7 + 0.2 + 0.1 is not exactly 1 in binary.
    if abs(math.fsum(ratios) - 1) > 1e-9:
        raise ConfigError(f"ratios must add up to 1, got {list(ratios)} = {math.fsum(ratios)}")
    if method not in ("exact", "hash"):
        raise ConfigError(f"method must be 'exact' or 'hash', got {method!r}")


# ── what belongs together ─────────────────────────────────────────────────────────────────────────


def _values(rows: Sequence[Row], key: Key) -> list[Hashable]:
    """Return each row's value of the key; None if the row does not have it."""
    if key == LINEAGE:
        # Without derived rows every row is its own ancestor, and naming them all costs time.
        if not any(map(lineage_of, rows)):
            return [None] * len(rows)
        # An original is named by its id, which is the root of all that was derived from it.
        return [str(lineage_of(row).get("root") or id_of(row)) for row in rows]
    with boundary(f"key {key!r}"):
        values = [value_of(row, key) if isinstance(key, str) else key(row) for row in rows]
    try:
        # The check that all are hashable, at the speed of a set.
        set(values)
    except TypeError:
        index = next(i for i, value in enumerate(values) if not isinstance(value, Hashable))
        raise DataError(
            f"row {index}: key {key!r} gives {values[index]!r:.60}, which cannot be compared"
        ) from None
    return values


class View(NamedTuple):
    """Texts that must not be similar across parts, each with a row that contains it."""

    measure: Measure
    rows: list[int]
    """One row of each unit."""
    texts: list[str]


class Comparisons(NamedTuple):
    """The texts to compare, and the rows that belong together whatever their texts are."""

    views: list[View]
    members: list[Sequence[int]]
    """The rows of each unit that has several."""


def _comparisons(
    rows: Sequence[Row], unit: Unit, near_duplicates: float | Fraction | None
) -> Comparisons:
    if near_duplicates is None:
        return Comparisons([], [])
    units = units_of(rows, unit)
    members = [numbers for numbers in units.members if len(numbers) > 1]
    return Comparisons(_views(units, Measure(near_duplicates)), members)


def _views(units: Units, measure: Measure) -> list[View]:
    """Return the comparisons to make: among units with the same instructions."""
    views: list[View] = []
    for numbers in by_context(units.contexts, range(len(units.members))):
        first = [units.members[number][0] for number in numbers]
        views.append(View(measure, first, [units.states[number] for number in numbers]))
        # Of single rows the opening is the state, which has been compared already.
        if any(len(units.members[number]) > 1 for number in numbers):
            openings = [units.openings[number] for number in numbers]
            long = [n for n, text in enumerate(openings) if _is_long(text, measure)]
            views.append(View(measure, [first[n] for n in long], [openings[n] for n in long]))
    return views


def _is_long(text: str, measure: Measure) -> bool:
    return len(measure.words(text)) >= LONG_OPENING


def _groups(
    count: int,
    keys: Sequence[Sequence[Hashable]],
    members: Iterable[Sequence[int]],
    views: Iterable[View],
) -> list[int]:
    """Return the first row of each row's group."""
    leader = list(range(count))
    for values in keys:
        # Equal keys first: they connect most rows without comparing any text.
        _unite(leader, _repeats(values, _first(values)))
    _unite(leader, ((rows[0], row) for rows in members for row in rows[1:]))
    for view in views:
        first = _first(view.texts)
        # Equal texts are united directly, so that only distinct ones are compared.
        repeats = _repeats(view.texts, first)
        _unite(leader, ((view.rows[one], view.rows[other]) for one, other in repeats))
        numbers = list(first.values())
        close = ties(list(first), view.measure)
        _unite(
            leader,
            ((view.rows[numbers[one]], view.rows[numbers[other]]) for one, other in close),
        )
    for index in range(count):  # a leader precedes its followers, so one pass suffices
        leader[index] = leader[leader[index]]
    return leader


def _first(values: Sequence[H]) -> dict[H, int]:
    """Return the index of the first occurrence of each value."""
    # Backwards, since a later pair replaces an earlier one in a dict.
    return dict(zip(reversed(values), range(len(values) - 1, -1, -1), strict=True))


def _repeats(values: Sequence[H], first: Mapping[H, int]) -> Iterator[tuple[int, int]]:
    """Yield each row whose value occurred before, with the first row that has it."""
    for index, (value, earlier) in enumerate(zip(values, map(first.get, values), strict=True)):
        # None is no key: rows without one are not a group.
        if earlier is not None and earlier != index and value is not None:
            yield earlier, index


def _unite(leader: list[int], pairs: Iterable[tuple[int, int]]) -> None:
    for one, other in pairs:
        mine, its = _leader(leader, one), _leader(leader, other)
        # Always the smaller, so that a group is named by its first row.
        leader[max(mine, its)] = min(mine, its)


def _leader(leader: list[int], index: int) -> int:
    while leader[index] != index:
        leader[index] = leader[leader[index]]
        index = leader[index]
    return index


# ── placing groups by size ────────────────────────────────────────────────────────────────────────


def assign_parts(
    group_of: Sequence[int], labels: Sequence[Hashable], ratios: Sequence[float], *, seed: int
) -> list[int]:
    """Return a part for every row: groups stay whole, and labels are distributed by `ratios`.

    Groups of several rows are placed first, largest first, each into the part that needs most of
    its labels. Single rows then fill the rest, in a random order drawn from `seed`.

    Raises:
        DataError: there are enough rows for all parts, but not enough groups.
    """
    random = sub_random(seed, "split_dataset")
    size_of = Counter(group_of)
    _check_groups(size_of, len(group_of), ratios)
    rows_of: dict[int, list[int]] = {group: [] for group, size in size_of.items() if size > 1}
    singles: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(group_of):
        if group in rows_of:
            rows_of[group].append(row)
        else:
            singles[labels[row]].append(row)
    parts = _OpenPlaces(labels, ratios, len(size_of))
    part_of = [0] * len(group_of)
    several = list(rows_of.values())
    # Before the sort, which is stable: groups of equal size come in random order.
    random.shuffle(several)
    # Largest first: small groups can still even out what a large one has upset.
    for rows in sorted(several, key=len, reverse=True):
        part = parts.take(Counter(labels[row] for row in rows))
        for row in rows:
            part_of[row] = part
    for label, shares in parts.share_rest({k: len(v) for k, v in singles.items()}).items():
        random.shuffle(singles[label])
        ends = (part for part, share in enumerate(shares) for _ in range(share))
        for row, part in zip(singles[label], ends, strict=True):
            part_of[row] = part
    return part_of


def _check_groups(size_of: Mapping[int, int], rows: int, ratios: Sequence[float]) -> None:
    parts = sum(ratio > 0 for ratio in ratios)
    if rows < parts:
        _log.warning("%d rows cannot fill %d parts: some stay empty", rows, parts)
    elif len(size_of) < parts:
        raise DataError(
            f"the {rows} rows form only {len(size_of)} inseparable groups (the biggest has "
            f"{max(size_of.values())} rows), too few for {parts} parts; ask for fewer parts, group "
            "by less (group_by=...), or separate similar states (near_duplicates=None)"
        )


class _OpenPlaces:
    """The number of rows of each label that each part still needs."""

    def __init__(self, labels: Sequence[Hashable], ratios: Sequence[float], groups: int) -> None:
        self._total = Counter(labels)
        self._ratios = ratios
        self._wanted = share_out(self._total, dict.fromkeys(self._total, ratios))
        self._open = [part for part, ratio in enumerate(ratios) if ratio > 0]
        self._empty = self._open.copy() if groups >= len(self._open) else []
        self._groups = groups

    def take(self, inside: Mapping[Hashable, int]) -> int:
        """Choose a part for a group with these numbers of rows per label, and record it."""
        # Once the remaining groups just suffice for the empty parts, only those are candidates.
        among = self._empty if self._groups <= len(self._empty) else self._open

        def need(part: int) -> float:
            return sum(
                count * self._wanted[label][part] / self._total[label]
                for label, count in inside.items()
            )

        # Relative to each label's total, so that rare labels count as much as common ones.
        part = max(among, key=need)
        for label, count in inside.items():
            self._wanted[label][part] -= count
        self._empty = [other for other in self._empty if other != part]
        self._groups -= 1
        return part

    def share_rest(self, singles: Mapping[Hashable, int]) -> dict[Hashable, list[int]]:
        """Return how many single rows of each label go to each part."""
        weights: dict[Hashable, Sequence[float]] = {}
        for label in singles:
            open_wishes = [max(0, wish) for wish in self._wanted[label]]
            # Large groups may have filled every part; then the rest goes by the ratios.
            weights[label] = open_wishes if any(open_wishes) else self._ratios
        shares = share_out(singles, weights)
        for part in self._empty:
            _give_one(shares, part, self._empty)
        return shares


def share_out(totals: Mapping[L, int], weights: Mapping[L, Sequence[float]]) -> dict[L, list[int]]:
    """Split integers by largest remainder, carrying the rounding error to the next label.

    So the sums of the parts over all labels are also right, within one.
    """
    shares: dict[L, list[int]] = {}
    carried: list[float] = []
    for label, total in totals.items():
        weight = weights[label]
        due = [total * of_part / math.fsum(weight) for of_part in weight]
        if carried:
            due = [exact + rest for exact, rest in zip(due, carried, strict=True)]
        shares[label] = _whole(due, total)
        carried = [exact - share for exact, share in zip(due, shares[label], strict=True)]
    return shares


def _whole(due: Sequence[float], total: int) -> list[int]:
    shares = [max(0, math.floor(exact)) for exact in due]
    parts = range(len(due))
    while sum(shares) < total:
        shares[max(parts, key=lambda part: due[part] - shares[part])] += 1
    # The error carried from the label before may make a share too large.
    while sum(shares) > total:
        shares[min((p for p in parts if shares[p]), key=lambda part: due[part] - shares[part])] -= 1
    return shares


def _give_one(shares: Mapping[Hashable, list[int]], part: int, empty: Sequence[int]) -> None:
    """Move one row to an empty part from the part with the most rows to spare."""
    sums = [sum(column) for column in zip(*shares.values(), strict=True)]
    if sums[part]:
        return
    # A part that was empty itself may give a row only if it keeps one.
    spare = [donor_part for donor_part, size in enumerate(sums) if size > (donor_part in empty)]
    donor = max(spare, key=sums.__getitem__)
    share = max(shares.values(), key=lambda share: share[donor])
    share[donor] -= 1
    share[part] += 1


# ── by name ───────────────────────────────────────────────────────────────────────────────────────


def _by_hash(
    rows: Sequence[Row],
    group_of: Sequence[int],
    keys: Sequence[Sequence[Hashable]],
    ratios: Sequence[float],
    seed: int,
) -> list[int]:
    # A draw falls between two cumulated ratios; the draw depends on the group's name alone.
    ends = list(accumulate(ratios))
    last = max(part for part, ratio in enumerate(ratios) if ratio)
    part_of: dict[int, int] = {}
    for first in dict.fromkeys(group_of):
        # By the group's own key if it has one; only groups without one are named by a state.
        named = (repr(values[first]) for values in keys if values[first] is not None)
        name = next(named, state_of(rows[first]))
        draw = sub_seed(seed, "split_dataset", name) / 2**63
        # The sum of the ratios may be a little below 1.
        part_of[first] = min(bisect(ends, draw), last)
    return [part_of[first] for first in group_of]


# ── how it came out ───────────────────────────────────────────────────────────────────────────────


def _fill(
    report: SplitReport, group_of: Sequence[int], part_of: Sequence[int], ratios: Sequence[float]
) -> None:
    sizes = Counter(part_of)
    groups = Counter(group_of)
    report.sizes = tuple(sizes[part] for part in range(len(ratios)))
    report.ratios = tuple(size / max(1, len(part_of)) for size in report.sizes)
    report.groups, report.biggest_group = len(groups), max(groups.values(), default=0)


def _leaks(part_of: Sequence[int], keys: Sequence[Sequence[Hashable]]) -> int:
    """Count the values that occur in more than one part."""
    pairs = [set(zip(values, part_of, strict=True)) for values in keys]
    per_value = [Counter(value for value, _ in of_parts if value is not None) for of_parts in pairs]
    return sum(parts > 1 for counter in per_value for parts in counter.values())


def _close(part_of: Sequence[int], view: View) -> int:
    """Count the texts that are similar to one in an earlier part."""
    parts = [part_of[row] for row in view.rows]
    # Equal texts in one part are compared once.
    distinct = list(dict.fromkeys(zip(view.texts, parts, strict=True)))
    texts, sides = [text for text, _ in distinct], [part for _, part in distinct]
    return crossing(texts, sides, view.measure)
