"""Counts what an export could not carry, so that nothing is lost silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from orbiter.train.trajectory.item import NAMES, TrajectoryItem, values_of


class Left(Counter[str]):
    """What an export cannot carry: for the name of a field, how many items had something there."""

    def note(self, item: TrajectoryItem, carried: Collection[str]) -> None:
        """Count the fields of `item` that hold something and are not among those carried.

        `carried` may name single entries of the metadata, as in `metadata.reasoning_content`.
        """
        for name, value in zip(NAMES, values_of(item), strict=True):
            if name in carried or not _says_something(value):
                continue
            if name != "metadata" or any(f"metadata.{key}" not in carried for key in value):
                self[name] += 1


def _says_something(value: object) -> bool:
    return bool(value) or isinstance(value, int | float)  # 0, 0.0 and False say something
