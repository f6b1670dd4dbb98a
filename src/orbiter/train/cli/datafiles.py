"""Read data files of any known format for the command line, and write them by their suffix."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from orbiter.train.errors import DataError, StorageError
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


def check_target(path: Path) -> None:
    """Check that `write_items` can write this file, before anything is made for it.

    Raises:
        ConfigError: the suffix names no format that can be written.
        StorageError: the folder cannot be made or written.
    """
    from orbiter.train.formats.registry import check_target as check

    check(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"the folder {path.parent} cannot be written")


def write_items(items: Iterable[TrajectoryItem], path: Path) -> int:
    """Write items in the format of the suffix (.jsonl, .json, .csv, .parquet); return the count."""
    from orbiter.train.formats.registry import write

    path.parent.mkdir(parents=True, exist_ok=True)
    return write(items, path).written
