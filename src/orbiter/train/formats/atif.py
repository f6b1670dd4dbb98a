"""Reads the Agent Trajectory Interchange Format (ATIF) 1.4 to 1.8 and writes 1.7.

A file holds one trajectory (`.json`), an array of them, or one per line (`.jsonl`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from orbiter.train.errors import DataError
from orbiter.train.formats.atif_read import items_in
from orbiter.train.formats.atif_write import trajectories
from orbiter.train.formats.format import ExportReport, Format
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Source
from orbiter.train.json_files.walk import objects_in
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import NAMES


def read(source: Source) -> Iterator[TrajectoryItem]:
    """Yield the items of all trajectories in a file.

    Raises:
        DataError: a trajectory is wrong; the message names the line where it begins and the field.
    """
    for line, trajectory in objects_in(source):
        try:
            yield from items_in(trajectory)
        except (DataError, RecursionError) as error:
            source.refuse(line, _reason(error), error)


def write(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
    """Write items as trajectories: one per line, or one document if the suffix is `.json`.

    Raises:
        StorageError: the file cannot be written; the previous file is unchanged.
    """
    lines = path.suffix != ".json"
    written = 0
    with atomic_write(path) as file:
        made = trajectories(items)
        held = next(made, None)
        several = False
        while held is not None:
            trajectory, count = held
            held = next(made, None)
            if not lines:
                file.write(b",\n" if several else b"[\n" if held is not None else b"")
            several = several or held is not None
            file.write(fields.encode(trajectory) + (b"\n" if lines else b""))
            written += count
        if not lines:
            file.write(b"\n]\n" if several else b"\n")
    return ExportReport(written, {}, path)


def detect(head: bytes, path: Path) -> float:  # noqa: ARG001 - the content says it
    """Return the confidence, from 0 to 1, that a file with this head holds trajectories."""
    return 1.0 if _VERSION.search(head) else 0.0


def _reason(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


_VERSION = re.compile(rb'"schema_version"\s*:\s*"ATIF-v1\.')

FORMAT = Format(
    name="atif",
    about="Agent Trajectory Interchange Format: reads 1.4 to 1.8, writes 1.7",
    suffixes=(".json", ".jsonl"),
    survives=frozenset(NAMES),
    detect=detect,
    read=read,
    write=write,
)
