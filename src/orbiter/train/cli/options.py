"""Options and data files that several commands share, each defined once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.disk import disk_errors
from orbiter.train.errors import DataError, StorageError
from orbiter.train.progress import working
from orbiter.train.trajectory import TrajectoryItem

RUNS = Path("runs")
"""The default parent folder of runs."""


def new_run_folder(kind: str) -> Path:
    """Return the folder of a run that begins now, named by its kind and the time."""
    return RUNS / f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="The settings: a TOML or YAML file.")
]
OverrideWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.NAME=VALUE]...",
        help="Settings that override the file's, such as train.learning_rate=1e-6.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The folder to create.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print the plan, and load no model.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")]
DataFile = Annotated[Path, typer.Argument(help="A file of items in any known format.")]
FormatName = Annotated[
    str | None, typer.Option("--format", help="The file's format; detected by default.")
]
Host = Annotated[str, typer.Option(help="The address to listen on; by default this machine only.")]


def read_items(path: str | Path, format_name: str | None = None) -> list[TrajectoryItem]:
    """Return the items of a file, including those without a reward.

    Raises:
        DataError: names the file, the line and the field.
        StorageError: the file cannot be read.
    """
    from orbiter.train.formats.registry import counted, read

    with working(f"reading {path}") as count:
        items = list(counted(read(path, format_name), count))
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
    from orbiter.train.formats.registry import counted, write

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with working(f"writing {path}") as count:
        return write(counted(items, count), path).written
