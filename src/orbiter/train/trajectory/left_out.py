"""Counts the fields that an export could not store, so that nothing is lost silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from orbiter.train.trajectory.item import NAMES, TrajectoryItem, values_of


class Left(Counter[str]):
    """For each field that an export cannot store, the number of items that had a value in it."""

    def __init__(self) -> None:
        """Create an empty count."""
        super().__init__()
        self.details: list[str] = []
        """One line for each record that was left out as a whole, and why."""

    def note(self, item: TrajectoryItem, carried: Collection[str]) -> None:
        """Count the fields of `item` that have a value and are not in `carried`.

        `carried` may name single entries of the metadata, as in `metadata.reasoning_content`.
        """
        for name, value in zip(NAMES, values_of(item), strict=True):
            if name in carried or not _says_something(value):
                continue
            if name != "metadata" or any(f"metadata.{key}" not in carried for key in value):
                self[name] += 1


def _says_something(value: object) -> bool:
    return bool(value) or isinstance(value, int | float)  # 0, 0.0 and False are values
