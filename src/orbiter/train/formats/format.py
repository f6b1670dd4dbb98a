"""Defines a file format: how to detect, read and write it, and which fields it can store.

A format is one module with a `Format` in it. Nothing is lost silently: an `ExportReport` counts
what the format could not store. Not here: the list of formats (`registry.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orbiter.train.json_files.source import Source
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

Reader = Callable[[Source], Iterator[TrajectoryItem]]
"""Yields the items of a file one at a time, without loading the whole file.

A reader reports a bad record with `source.refuse(line, reason)`, which raises a `DataError` with
file and line or, if the caller wants bad records skipped, notes it and returns. A reader raises no
other error.
"""

Writer = Callable[[Iterable[TrajectoryItem], Path], "ExportReport"]
"""Writes items to a file or folder atomically, and reports what it could not store."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote and what it had to leave out."""

    written: int
    """The number of items written."""
    left_out: Mapping[str, int]
    """For each field that the format cannot store, the number of items that had a value in it."""
    path: Path | None = None
    """The file that was written; None if the result is in memory."""
    details: Sequence[str] = ()
    """One line for each record that was left out as a whole, and why."""

    def __str__(self) -> str:
        where = f" to {self.path}" if self.path is not None else ""
        summary = f"{self.written} items written{where}"
        if not self.left_out:
            return f"{summary}; nothing left out"
        fields = ", ".join(f"{name} ({count})" for name, count in sorted(self.left_out.items()))
        # Sorted, so that two reports of the same data are equal.
        lines = [f"{summary}; left out, with how many items had it: {fields}"]
        lines += [f"left out: {detail}" for detail in self.details[:_SHOWN]]
        if len(self.details) > _SHOWN:
            lines.append(f"and {len(self.details) - _SHOWN} more")
        return "\n".join(lines)


Row = Mapping[str, Any]
"""One object of a file."""


Column = Literal["text", "number", "whole", "flag", "numbers", "wholes", "object", "objects"]
"""The type of a column: text, float, int, bool, lists of numbers, any JSON, or a list of any."""


class Built(NamedTuple):
    """An object to write, and the number of items in it."""

    row: dict[str, Any]
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How one format maps objects to items and back."""

    claims: Callable[[Row], float]
    """The confidence, from 0 to 1, that an object has this format; the values of a cut-off object
    are None."""
    parse: Callable[[Row, str], Iterable[TrajectoryItem]]
    """Yields the items in an object; the text names its file and line. Raises DataError."""
    build: Callable[[Iterable[TrajectoryItem], Left], Iterator[Built]]
    """Yields objects that store the items, and counts what they cannot store."""
    columns: Mapping[str, Column]
    """The column types, for objects that are rows of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One file format."""

    name: str
    """The name that users ask for, such as "openai-chat"."""
    about: str
    """The tool that the format comes from, in a few words, with the version."""
    suffixes: tuple[str, ...]
    """The suffixes of its files, with the dot; empty for a folder. Reading goes by content; an
    error suggests the formats of the file's suffix."""
    survives: frozenset[str]
    """The item fields that survive a round trip (for a format that is only read: the fields that an
    import can fill). `metadata.x` means one entry of the metadata."""
    detect: Callable[[bytes, Path], float]
    """The confidence, from 0 to 1, that the file at this path with these first bytes is in this
    format.

    Gets at most `HEAD` bytes, which may end anywhere; b"" for a folder. Never raises.
    """
    read: Reader | None = None
    """None if this package does not read the format."""
    write: Writer | None = None
    """None if this package does not write the format."""
    rows: Rows | None = None
    """How one object of the file maps to items, if the file is a sequence of objects."""


_SHOWN = 20
"""The number of details in a report's text."""
HEAD = 64 * 1024
"""The number of bytes of a file that detection looks at."""
