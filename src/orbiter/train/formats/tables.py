"""Rows of tables from any source: finds the format that the columns belong to, and decodes cells.

Not here: the files (`parquet.py`, `hf_datasets.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orbiter.train.errors import DataError
from orbiter.train.formats.format import Column, Row, Rows
from orbiter.train.formats.registry import NAMES, format_of
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
"""The errors that table readers raise on a damaged file (pyarrow's errors are among them)."""

_ROW_FORMATS = ("openai", "trl", "sharegpt", "alpaca")
IN_TABLES = ("jsonl", *(name for name in NAMES if name.startswith(_ROW_FORMATS)))
"""The formats whose rows can be in a table, our own first."""


def rows_of_batches(
    batches: Iterator[Any],  # Arrow's record batches or tables, which are not typed
    damaged: str,
) -> Iterator[Row]:
    """Yield the rows of Arrow batches, one batch in memory at a time.

    Raises:
        DataError: a batch cannot be read; the message begins with `damaged`.
    """
    while True:
        try:
            batch = next(batches)
            # Arrow trusts the offsets in a file: a text of negative length would end the process.
            batch.validate(full=True)
            rows = batch.to_pylist()
        except StopIteration:
            return
        except FOREIGN as error:
            raise DataError(f"{damaged}: {error}") from error
        yield from rows


def claim(columns: Iterable[str]) -> float:
    """Return the confidence, from 0 to 1, that these columns belong to one of the formats."""
    return max(_claims(columns).values())


def rows_in(columns: Iterable[str], where: str) -> Rows:
    """Return the row mapping for a table with these columns.

    Raises:
        DataError: no format has such columns.
    """
    names = list(columns)
    sure = _claims(names)
    # On a tie the first of IN_TABLES, which is our own record.
    best = max(sure, key=lambda name: sure[name])
    if not sure[best]:
        raise DataError(f"{where}:1: no format has the columns {', '.join(names) or '(none)'}")
    return rows_of(best)


def rows_of(name: str) -> Rows:
    """Return the row mapping of a format.

    Raises:
        DataError: the format's file is not a sequence of rows.
    """
    rows = format_of(name).rows
    if rows is None:
        raise DataError(f"format {name!r} has no rows; those that have: {', '.join(IN_TABLES)}")
    return rows


def plain_rows(given: Iterable[Row], rows: Rows) -> Iterator[Record]:
    """Yield rows with their numbers, with JSON cells decoded and empty cells removed.

    A cell that is not JSON is kept as text, so that the format can say what it expected.
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
    # The claims look at keys alone where the values are unknown, as in a cut-off object.
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
