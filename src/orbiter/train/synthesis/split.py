"""Split data so that nothing leaks from one part into another.

Rows that belong together (one task, one episode, one ancestor, or states that are nearly the same)
form a group, and a group is never cut. Left out: folds for cross-validation.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from orbiter.train.errors import ConfigError, DataError, boundary
from orbiter.train.seeding import sub_seed
from orbiter.train.synthesis.comparison import Unit, Units, by_context, check_unit, units_of
from orbiter.train.synthesis.placing import place
from orbiter.train.synthesis.records import D, Records, Row, id_of, lineage_of, state_of, value_of
from orbiter.train.synthesis.similarity import Measure, crossing, ties

H = TypeVar("H", bound=Hashable)
Key: TypeAlias = str | Callable[[Row], Hashable]
LINEAGE = "lineage"
"""Groups a row with its ancestors and all that were derived from them."""
LONG_OPENING = 8
"""Words from which the opening of an episode says which task it is; "Hello" does not."""
DEFAULT_GROUPS: tuple[Key, ...] = ("task_id", "episode_id", LINEAGE)


@dataclass(slots=True)
class SplitReport:
    """How a split came out; handed in empty and filled by `split_dataset`."""

    sizes: tuple[int, ...] = ()
    """Rows of each part."""
    ratios: tuple[float, ...] = ()
    """Share of all rows that each part got."""
    groups: int = 0
    """Groups that could not be cut, single rows included."""
    biggest_group: int = 0
    """Rows of the biggest of them."""
    leaked: int = 0
    """Keys that stand in more than one part, and states close to one in an earlier part: looked for
    anew in the finished parts, and always 0."""


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
    """Return as many parts as `ratios`; each keeps the data's kind and order.

    Groups are placed biggest first, each where most rows are still wanted; single rows then fill
    every part up to its size by largest remainder. With few and big groups the sizes come as near
    as this allows. Every part with a ratio above 0 gets at least one group.

    Args:
        data: a `TrajectoryDataset`, a list of `TrajectoryItem` or a list of mappings.
        ratios: the parts' shares; none negative, 1 in sum.
        seed: other seeds give other parts; the same one always the same.
        group_by: what keeps rows together: names of fields or of entries in the metadata,
            "lineage", or functions of the row. A row without the key is grouped by nothing.
        near_duplicates: units whose states reach this similarity (as for `deduplicate`) stay
            together, and so do units connected through others; None compares no texts. Episodes of
            several steps also stay together if their openings reach it: what the first step adds
            to the instructions, where that is at least `LONG_OPENING` words.
        unit: "episode" keeps the rows of an episode together and compares what its steps add;
            "step" compares single rows by what they add; "text" by their whole states.
        stratify: every part gets its share of each value of this.
        method: "exact" meets the ratios. "hash" lets every group's first row decide by its name
            alone, so that rows added at the end move no row that was there, unless they tie two
            groups together; the ratios are met on average, and a part may stay empty.
        report: takes down what came out.

    Raises:
        ConfigError: ratios, a method or a similarity that cannot mean anything.
        DataError: fewer groups than parts, although there are rows enough.
    """
    _check(ratios, method)
    records = Records.of(data)
    keys = [_values(records.rows, key) for key in group_by]
    check_unit(unit)
    views: list[View] = []
    members: list[Sequence[int]] = []
    if near_duplicates is not None:
        units = units_of(records.rows, unit)
        members = [rows for rows in units.members if len(rows) > 1]
        views = _views(units, Measure(near_duplicates))
    group_of = _groups(len(records), keys, members, views)
    if method == "hash":
        part_of = _by_hash(records.rows, group_of, keys, ratios, seed)
    else:
        labels = _values(records.rows, stratify) if stratify else [None] * len(records)
        part_of = place(group_of, labels, ratios, seed=seed)
    if report is not None:
        _fill(report, group_of, part_of, ratios)
        report.leaked = _leaks(part_of, keys)
        report.leaked += sum(_close(part_of, view) for view in views)
    indices: list[list[int]] = [[] for _ in ratios]
    for index, part in enumerate(part_of):
        indices[part].append(index)
    return [records.take(chosen) for chosen in indices]


def _check(ratios: Sequence[float], method: str) -> None:
    if not ratios or any(not 0 <= ratio <= 1 for ratio in ratios):
        raise ConfigError(f"ratios must be one or more shares in [0, 1], got {list(ratios)}")
    if abs(math.fsum(ratios) - 1) > 1e-9:
        raise ConfigError(f"ratios must add up to 1, got {list(ratios)} = {math.fsum(ratios)}")
    if method not in ("exact", "hash"):
        raise ConfigError(f"method must be 'exact' or 'hash', got {method!r}")


# ── what belongs together ─────────────────────────────────────────────────────────────────────────


def _values(rows: Sequence[Row], key: Key) -> list[Hashable]:
    """Return each row's value of the key; None where it has none."""
    if key == LINEAGE:
        if not any(map(lineage_of, rows)):
            return [None] * len(rows)
        return [str(lineage_of(row).get("root") or id_of(row)) for row in rows]
    with boundary(f"key {key!r}"):
        values = [value_of(row, key) if isinstance(key, str) else key(row) for row in rows]
    try:
        set(values)
    except TypeError:
        index = next(i for i, value in enumerate(values) if not isinstance(value, Hashable))
        raise DataError(
            f"row {index}: key {key!r} gives {values[index]!r:.60}, which cannot be compared"
        ) from None
    return values


class View(NamedTuple):
    """Texts that must not be similar across parts, each with a row that has it."""

    measure: Measure
    rows: list[int]
    """A row of each unit."""
    texts: list[str]


def _views(units: Units, measure: Measure) -> list[View]:
    """Return the comparisons to make: among the units under each instructions."""
    views: list[View] = []
    for numbers in by_context(units.contexts, range(len(units.members))):
        first = [units.members[number][0] for number in numbers]
        views.append(View(measure, first, [units.states[number] for number in numbers]))
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
    """Return for every row the first row of its group."""
    leader = list(range(count))
    for values in keys:
        _unite(leader, _repeats(values, _first(values)))
    _unite(leader, ((rows[0], row) for rows in members for row in rows[1:]))
    for view in views:
        first = _first(view.texts)
        repeats = _repeats(view.texts, first)
        _unite(leader, ((view.rows[one], view.rows[other]) for one, other in repeats))
        numbers = list(first.values())
        close = ties(list(first), view.measure)
        _unite(
            leader,
            ((view.rows[numbers[one]], view.rows[numbers[other]]) for one, other in close),
        )
    for index in range(count):  # a leader stands before its followers, so one pass finds them all
        leader[index] = leader[leader[index]]
    return leader


def _first(values: Sequence[H]) -> dict[H, int]:
    """Return where each value stands first."""
    return dict(zip(reversed(values), range(len(values) - 1, -1, -1), strict=True))


def _repeats(values: Sequence[H], first: Mapping[H, int]) -> Iterator[tuple[int, int]]:
    """Yield each row whose value was there before, with the row that had it first."""
    for index, (value, earlier) in enumerate(zip(values, map(first.get, values), strict=True)):
        if earlier is not None and earlier != index and value is not None:
            yield earlier, index


def _unite(leader: list[int], pairs: Iterable[tuple[int, int]]) -> None:
    for one, other in pairs:
        mine, its = _leader(leader, one), _leader(leader, other)
        leader[max(mine, its)] = min(mine, its)


def _leader(leader: list[int], index: int) -> int:
    while leader[index] != index:
        leader[index] = leader[leader[index]]
        index = leader[index]
    return index


# ── by name ───────────────────────────────────────────────────────────────────────────────────────


def _by_hash(
    rows: Sequence[Row],
    group_of: Sequence[int],
    keys: Sequence[Sequence[Hashable]],
    ratios: Sequence[float],
    seed: int,
) -> list[int]:
    ends = list(accumulate(ratios))
    last = max(part for part, ratio in enumerate(ratios) if ratio)
    part_of: dict[int, int] = {}
    for first in dict.fromkeys(group_of):
        named = (repr(values[first]) for values in keys if values[first] is not None)
        name = next(named, state_of(rows[first]))
        draw = sub_seed(seed, "split_dataset", name) / 2**63
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
    """Count the values that stand in more than one part."""
    pairs = [set(zip(values, part_of, strict=True)) for values in keys]
    per_value = [Counter(value for value, _ in found if value is not None) for found in pairs]
    return sum(parts > 1 for counter in per_value for parts in counter.values())


def _close(part_of: Sequence[int], view: View) -> int:
    """Count the texts that are close to one in an earlier part."""
    parts = [part_of[row] for row in view.rows]
    distinct = list(dict.fromkeys(zip(view.texts, parts, strict=True)))
    texts, sides = [text for text, _ in distinct], [part for _, part in distinct]
    return crossing(texts, sides, view.measure)
