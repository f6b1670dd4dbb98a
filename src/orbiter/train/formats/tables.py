"""Tables of rows, whatever holds them: which format the columns are of, and what stands in a cell.

Left out: the files (`parquet.py`, `hf_datasets.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orbiter.train.errors import DataError
from orbiter.train.formats.registry import NAMES, format_of
from orbiter.train.formats.rows import Column, Row, Rows
from orbiter.train.json_files.records import Record, decode_json

FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the readers of tables raise on a damaged file (pyarrow's errors are among them)."""

IN_TABLES = ("jsonl", *(name for name in NAMES if name.startswith(("openai", "trl", "sharegpt"))))
"""Formats whose rows are looked for in a table, our own first."""


def claim(columns: Iterable[str]) -> float:
    """Say how surely a table with these columns holds rows of one of the formats."""
    return max(_claims(columns).values())


def rows_in(columns: Iterable[str], where: str) -> Rows:
    """Return what the rows of a table mean.

    Raises:
        DataError: no format has such columns.
    """
    names = list(columns)
    sure = _claims(names)
    best = max(sure, key=lambda name: sure[name])
    if not sure[best]:
        raise DataError(f"{where}:1: no format has the columns {', '.join(names) or '(none)'}")
    return rows_of(best)


def rows_of(name: str) -> Rows:
    """Return what a row of a format means.

    Raises:
        DataError: the format's file is no sequence of rows.
    """
    rows = format_of(name).rows
    if rows is None:
        raise DataError(f"format {name!r} has no rows; those that have: {', '.join(IN_TABLES)}")
    return rows


def plain_rows(given: Iterable[Row], rows: Rows) -> Iterator[Record]:
    """Yield rows with their numbers, cells of JSON text as what they say, and no unset cells.

    A cell that is no JSON stays as it is: the format says what it expected.
    """
    for number, row in enumerate(given, start=1):
        yield Record(
            number,
            {
                name: _cell(value, rows.columns.get(name))
                for name, value in row.items()
                if value is not None
            },
        )


def _claims(columns: Iterable[str]) -> Mapping[str, float]:
    row: dict[str, Any] = dict.fromkeys(columns)
    return {name: rows_of(name).claims(row) for name in IN_TABLES}


def _cell(value: object, column: Column | None) -> object:
    if column not in ("object", "objects"):
        return value
    if isinstance(value, str):
        return _json(value)
    return (
        [_json(each) if isinstance(each, str) else each for each in value]
        if (isinstance(value, list))
        else value
    )


def _json(text: str) -> object:
    try:
        return decode_json(text)
    except DataError:
        return text
