"""Distributes groups of rows over parts so that the parts get the requested sizes.

Not here: which rows form a group (`split.py`).
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from orbiter.train.errors import DataError
from orbiter.train.seeding import sub_random

L = TypeVar("L", bound=Hashable)

_log = logging.getLogger(__name__)


def place(
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
    parts = _Parts(labels, ratios, len(size_of))
    part_of = [0] * len(group_of)
    several = list(rows_of.values())
    random.shuffle(several)
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


class _Parts:
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
        due = [total * one / math.fsum(weight) for one in weight]
        if carried:
            due = [one + rest for one, rest in zip(due, carried, strict=True)]
        shares[label] = _whole(due, total)
        carried = [one - share for one, share in zip(due, shares[label], strict=True)]
    return shares


def _whole(due: Sequence[float], total: int) -> list[int]:
    shares = [max(0, math.floor(one)) for one in due]
    parts = range(len(due))
    while sum(shares) < total:
        shares[max(parts, key=lambda part: due[part] - shares[part])] += 1
    while sum(shares) > total:
        shares[min((p for p in parts if shares[p]), key=lambda part: due[part] - shares[part])] -= 1
    return shares


def _give_one(shares: Mapping[Hashable, list[int]], part: int, empty: Sequence[int]) -> None:
    """Move one row to an empty part from the part with the most rows to spare."""
    sums = [sum(column) for column in zip(*shares.values(), strict=True)]
    if sums[part]:
        return
    spare = [other for other, size in enumerate(sums) if size > (other in empty)]
    donor = max(spare, key=sums.__getitem__)
    share = max(shares.values(), key=lambda share: share[donor])
    share[donor] -= 1
    share[part] += 1
