"""Formats whose file is a sequence of objects: converts objects to items and back.

The same objects occur in JSON lines, JSON arrays, Parquet and Hugging Face data sets, so a format
defines once what an object means. Not here: the files (`json_files/records.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from orbiter.train.errors import DataError
from orbiter.train.formats.format import ExportReport, Format, Rows
from orbiter.train.json_files.records import Record, encode_record, first_object, read_records
from orbiter.train.json_files.source import Source
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.left_out import Left


def row_format(name: str, *, about: str, survives: frozenset[str], rows: Rows) -> Format:
    """Return a format that writes such objects as JSON lines and also reads a JSON array."""

    def detect(head: bytes, _: Path) -> float:
        return rows.claims(first_object(head))

    def read(source: Source) -> Iterator[TrajectoryItem]:
        return items_of_records(source, read_records(source), rows)

    def write(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
        left, written = Left(), 0
        with atomic_write(path) as file:
            for built in rows.build(items, left):
                file.write(encode_record(built.row))
                written += built.items
        return ExportReport(written, left, path, tuple(left.details))

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
    """Yield the items of a file's objects; a bad object is refused as a whole."""
    name = Path(source.path).name
    for line, row in records:
        try:
            # All items of the object first, so that a bad answer does not leave half an episode.
            items = list(rows.parse(row, f"{name}:{line}"))
        except DataError as error:
            source.refuse(line, str(error), error)
        else:
            yield from items
