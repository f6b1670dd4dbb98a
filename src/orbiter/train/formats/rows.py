"""Formats whose file is a sequence of objects: one object in, items out, and the other way round.

The same objects stand in JSON lines, in a JSON array, in Parquet and in a Hugging Face data set, so
a format says once what an object means. Left out: the files (`records.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orbiter.train.errors import DataError
from orbiter.train.formats.format import ExportReport, Format
from orbiter.train.json_files.records import Record, encode_record, first_object, read_records
from orbiter.train.trajectory.files import Source, writing
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

Row = Mapping[str, Any]
"""One object of a file."""


Column = Literal["text", "number", "whole", "flag", "numbers", "wholes", "object", "objects"]
"""What a column holds: a text, a float, an int, a bool, lists of those, any JSON, a list of any."""


class Built(NamedTuple):
    """An object to write, and how many items it holds."""

    row: dict[str, Any]
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What an object means in one format."""

    claims: Callable[[Row], float]
    """How sure it is, from 0 to 1, that an object is its own; a cut-off one has None as values."""
    parse: Callable[[Row, str], Iterable[TrajectoryItem]]
    """Yields the items in an object; the text names the object in its file. Raises DataError."""
    build: Callable[[Iterable[TrajectoryItem], Left], Iterator[Built]]
    """Yields the objects that hold the items, and counts what they cannot hold."""
    columns: Mapping[str, Column]
    """What the columns hold where the objects stand in a table."""


def row_format(name: str, *, about: str, survives: frozenset[str], rows: Rows) -> Format:
    """Return the format of JSON lines of such objects; a JSON array is read as well."""

    def detect(head: bytes, _: Path) -> float:
        return rows.claims(first_object(head))

    def read(source: Source) -> Iterator[TrajectoryItem]:
        return items_of_records(source, read_records(source), rows)

    def write(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
        left, written = Left(), 0
        with writing(path) as file:
            for built in rows.build(items, left):
                file.write(encode_record(built.row))
                written += built.items
        return ExportReport(written, left, path)

    return Format(
        name=name,
        about=about,
        suffixes=(".jsonl", ".json"),
        survives=survives,
        detect=detect,
        read=read,
        write=write,
        rows=rows,
    )


def items_of_records(
    source: Source, records: Iterable[Record], rows: Rows
) -> Iterator[TrajectoryItem]:
    """Yield the items of a file's objects; an object that is wrong is refused whole."""
    name = Path(source.path).name
    for line, row in records:
        try:
            items = list(rows.parse(row, f"{name}:{line}"))
        except DataError as error:
            source.refuse(line, str(error), error)
        else:
            yield from items
