"""Read data files of any known format for the command line, and write them by their suffix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orbiter.train.disk import disk_errors
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryItem


def read_items(path: str | Path, format_name: str | None = None) -> list[TrajectoryItem]:
    """Return the items of a file, including those without a reward.

    Raises:
        DataError: names the file, the line and the field.
        StorageError: the file cannot be read.
    """
    from orbiter.train.formats.registry import read

    items = list(read(path, format_name))
    if not items:
        raise DataError(f"{path} holds no items")
    return items


def write_items(items: Iterable[TrajectoryItem], path: Path) -> int:
    """Write items in the format of the suffix (.jsonl, .json, .csv, .parquet); return the count."""
    from orbiter.train.formats.registry import write

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return write(items, path).written
