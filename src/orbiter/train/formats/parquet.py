"""Our own record as Parquet: one row per item, nested fields as JSON text, nothing lost.

Rows of other formats (one chat or one pair per row, as in public data sets) are read as well.
Not here: verl's prompt rows (`verl_rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from orbiter.train.errors import DataError, MissingExtraError, require
from orbiter.train.formats.format import ExportReport, Format, Row
from orbiter.train.formats.own import ROWS
from orbiter.train.formats.rows import items_of_records
from orbiter.train.formats.tables import FOREIGN, claim, plain_rows, rows_in, rows_of_batches
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Source
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory.item import NAMES, TrajectoryItem

BATCH = 512
"""The number of rows in memory at once."""
MAGIC = b"PAR1"
"""The first bytes of every Parquet file."""


def _detect(head: bytes, path: Path) -> float:
    if not head.startswith(MAGIC):
        return 0.0
    try:
        # The head has no column names: Parquet keeps its schema at the end of the file.
        names = require("pyarrow.parquet", extra="parquet").read_schema(path).names
    except (*FOREIGN, MissingExtraError):
        names = []
    return max(0.1, 0.8 * claim(names))  # claim it anyway, because reading then reports the error


def _read(source: Source) -> Iterator[TrajectoryItem]:
    with source.open() as file:
        table = open_table(source, file)
        rows = rows_in(table.schema_arrow.names, source.path)
        records = plain_rows(rows_of_table(source, table, BATCH), rows)
        yield from items_of_records(source, records, rows)


def open_table(source: Source, file: IO[bytes]) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return an open Parquet file as a `pyarrow.parquet.ParquetFile` whose columns can be read.

    Raises:
        DataError: the file is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    parquet = require("pyarrow.parquet", extra="parquet")
    try:
        table = parquet.ParquetFile(file)
        # Converted lazily; a damaged schema would otherwise raise outside this block.
        _ = table.schema_arrow.names
    except FOREIGN as error:
        raise DataError(f"{_damaged(source)}: {error}") from error
    return table


def rows_of_table(source: Source, table: Any, batch: int) -> Iterator[Row]:  # noqa: ANN401
    """Yield the rows of a `ParquetFile`, reading some at once.

    Raises:
        DataError: the file is damaged.
    """
    return rows_of_batches(table.iter_batches(batch), _damaged(source))


def _damaged(source: Source) -> str:
    return f"{source.path}:1: not a readable Parquet file"


def _write(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
    parquet = require("pyarrow.parquet", extra="parquet")
    schema, written, given = _schema(), 0, iter(items)
    with (
        atomic_write(path) as file,
        parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        while batch := list(islice(given, BATCH)):
            writer.write_table(_table(batch, schema))
            written += len(batch)
    return ExportReport(written, {}, path)


def _schema() -> Any:  # noqa: ANN401 - pyarrow has no types
    arrow = require("pyarrow", extra="parquet")
    kinds = {
        "text": arrow.string(),
        "number": arrow.float64(),
        "whole": arrow.int64(),
        "flag": arrow.bool_(),
        "wholes": arrow.list_(arrow.int64()),
        "numbers": arrow.list_(arrow.float64()),
        "object": arrow.string(),
        "objects": arrow.string(),
    }
    return arrow.schema([(name, kinds[ROWS.columns[name]]) for name in NAMES])


def _table(items: list[TrajectoryItem], schema: Any) -> Any:  # noqa: ANN401 - as above
    arrow = require("pyarrow", extra="parquet")
    rows = [_row(item) for item in items]
    try:
        return arrow.Table.from_pylist(rows, schema=schema)
    # A Python int has no limit, and an int64 column does.
    except (OverflowError, arrow.ArrowException) as error:
        raise DataError(
            f"an item has a number that 64 bits cannot hold ({error}); Parquet has no wider one"
        ) from error


def _row(item: TrajectoryItem) -> Mapping[str, object]:
    row = item.to_dict()
    for name, value in row.items():
        if ROWS.columns[name] in ("object", "objects"):
            # As text: a column of structs would add the keys of all other rows as nulls.
            row[name] = fields.encode(value).decode()
    return row


FORMAT = Format(
    name="parquet",
    about="our own record as Parquet; rows of other formats are read",
    suffixes=(".parquet",),
    survives=frozenset(NAMES),
    detect=_detect,
    read=_read,
    write=_write,
)
