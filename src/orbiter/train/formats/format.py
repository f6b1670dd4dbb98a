"""What a file format is to this package: how to know it, read it, write it, and what it can hold.

A format is one module with a `Format` in it. Nothing is lost in silence: what an export cannot
carry is counted in its `ExportReport`. Left out: which formats there are (`registry.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orbiter.train.trajectory.files import Source
from orbiter.train.trajectory.item import TrajectoryItem

if TYPE_CHECKING:
    from orbiter.train.formats.rows import Rows

Reader = Callable[[Source], Iterator[TrajectoryItem]]
"""Yields the items of a file, one after the other, never holding all of it.

What is wrong goes to `source.refuse(line, reason)`, which raises a `DataError` with file and line
or, where the caller wants bad records skipped, notes it and returns. No other error comes out.
"""

Writer = Callable[[Iterable[TrajectoryItem], Path], "ExportReport"]
"""Writes items to a file or a folder, wholly or not at all, and says what it could not carry."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote, and what it had to leave out."""

    written: int
    """Items."""
    left_out: Mapping[str, int]
    """For each field that has no place in the format, how many items had something there."""
    path: Path | None = None
    """Where it was written; None for a result in memory."""

    def __str__(self) -> str:
        where = f" to {self.path}" if self.path is not None else ""
        said = f"{self.written} items written{where}"
        if not self.left_out:
            return f"{said}; nothing left out"
        fields = ", ".join(f"{name} ({count})" for name, count in sorted(self.left_out.items()))
        return f"{said}; left out, with how many items had it: {fields}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One file format."""

    name: str
    """What it is asked for by, such as "openai-chat"."""
    about: str
    """Whose it is, in a few words, with the version it follows."""
    suffixes: tuple[str, ...]
    """Endings of its files, with the dot; none for a folder."""
    survives: frozenset[str]
    """The item fields that come back from a file as they went in (for a format that is only read:
    the fields that an import can fill). `metadata.x` stands for one entry of the metadata."""
    detect: Callable[[bytes, Path], float]
    """How sure it is, from 0 to 1, that a file with these first bytes at this path is its own.

    Gets at most `HEAD` bytes, which may end anywhere; b"" for a folder. Never raises.
    """
    read: Reader | None = None
    """None where this package does not read the format."""
    write: Writer | None = None
    """None where this package does not write the format."""
    rows: Rows | None = None
    """What one object of the file means, where the file is a sequence of objects."""


HEAD = 64 * 1024
"""Bytes of a file that detection looks at."""
