"""Reads and writes items as CSV files that are safe to open in a spreadsheet.

The first row names the fields. Numbers are unquoted, nested fields are JSON text, and an empty cell
is None (in `state` and `action`, which cannot be None, the empty text). A text that begins with one
of = + - @ tab return or ' would be run as a formula or lose its first character, so it is written
with a leading ', which reading removes. An empty text gets one too where an empty cell means None.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from orbiter.train.errors import DataError, did_you_mean
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Extra, OnError, Skipped, Source
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory.files import CHUNK
from orbiter.train.trajectory.item import NAMES, TrajectoryItem, values_of

ALWAYS = ("state", "action", "reward", "metadata")
"""Columns that are written even if no item has a value for them."""
_TEXT = ("state", "action", "task_id", "episode_id", "agent")
_RISKY = ("=", "+", "-", "@", "\t", "\r", "'")


def export_csv(items: Sequence[TrajectoryItem], path: str | os.PathLike[str]) -> int:
    """Write one row per item, without columns that are empty in all items; return the count."""
    used = set(ALWAYS)
    for item in items:
        used.update(
            name for name, value in zip(NAMES, values_of(item), strict=True) if value is not None
        )
    columns = [name for name in NAMES if name in used]
    buffer = io.StringIO(newline="")
    # RFC 4180; and a lone \n inside a cell can then not be mistaken for the end of a row.
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(columns)
    count = 0
    with atomic_write(path) as file:
        for count, item in enumerate(items, start=1):
            writer.writerow([_cell(name, getattr(item, name)) for name in columns])
            if count % CHUNK == 0:
                file.write(_drained(buffer))
        file.write(_drained(buffer))
    return count


def read_csv(
    path: str | os.PathLike[str], on_error: OnError, extra: Extra, skipped: list[Skipped]
) -> Iterator[TrajectoryItem]:
    """Yield the items of a CSV file; a byte order mark is allowed."""
    source = Source(path, on_error, extra, skipped)
    # A cell may be longer than the standard reader's default limit of 128 kB. The limit applies to
    # the whole process, and nothing here lowers it again.
    csv.field_size_limit(2**31 - 1)
    with (
        source.open() as raw,
        # newline="" leaves line ends inside cells as they are (csv's documentation asks for it).
        io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.reader(file, strict=True)
        columns = next(_rows(source, rows), (1, []))[1]
        _check_columns(source, columns)
        for line, row in _rows(source, rows):
            try:
                yield _item(columns, row)
            except DataError as error:
                source.refuse(line, str(error), error)


def _rows(source: Source, rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line on which it starts, without rows whose cells are all empty.

    A spreadsheet writes such rows below a table, with its commas.
    """
    # line_num counts the lines read so far. A row may span several, and it begins after the one
    # before.
    line = rows.line_num + 1  # type: ignore[attr-defined]  # csv.reader's
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            source.refuse(line, f"not CSV: {error}: the rest is not read", error)
            return
        if row is None:
            return
        if any(row):
            yield line, row
        line = rows.line_num + 1  # type: ignore[attr-defined]  # as above


def _check_columns(source: Source, columns: list[str]) -> None:
    where = f"{source.path}:1: "
    if missing := [name for name in ALWAYS[:3] if name not in columns]:
        raise DataError(
            f"{where}field {missing[0]!r}: no such column among {', '.join(columns) or 'none'}"
        )
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise DataError(f"{where}field {twice[0]!r}: expected one column, got several")
    unknown = [name for name in columns if name not in NAMES]
    if unknown and not source.extra_to_metadata:
        raise DataError(
            f"{where}field {unknown[0]!r}: no such field{did_you_mean(unknown[0], NAMES)} "
            '(extra="metadata" keeps unknown fields in metadata)'
        )


def _item(columns: list[str], row: list[str]) -> TrajectoryItem:
    if len(row) != len(columns):
        raise DataError(f"expected {len(columns)} cells, got {len(row)}")
    if foreign := next((cell for cell in row if _NOT_UTF8.search(cell)), None):
        # surrogateescape stores byte b as the character U+DC00 + b.
        byte = ord(_NOT_UTF8.findall(foreign)[0]) - 0xDC00
        name = columns[row.index(foreign)]
        raise DataError(f"field {name!r}: byte 0x{byte:02x} is not UTF-8")
    cells = dict(zip(columns, row, strict=True))
    values = {name: _value(name, cells.pop(name)) for name in NAMES if name in cells}
    metadata = values.pop("metadata", None) or {}
    if both := sorted(cells.keys() & metadata.keys()):
        raise DataError(f"field {both[0]!r}: appears both in the item and in its metadata")
    extra = {name: _unguarded(cell) for name, cell in cells.items() if cell}
    return TrajectoryItem(**values, metadata={**metadata, **extra})


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if name in _TEXT:
        return _guarded(str(value), optional=name not in ALWAYS)
    return fields.encode(value).decode()


def _guarded(text: str, *, optional: bool) -> str:
    return "'" + text if text.startswith(_RISKY) or (optional and not text) else text


def _unguarded(cell: str) -> str:
    return cell.removeprefix("'")


def _value(name: str, cell: str) -> Any:  # noqa: ANN401 - as the field has it
    if name in _TEXT:
        return _unguarded(cell) if cell or name in ALWAYS else None
    if not cell:
        return None
    try:
        return _PARSERS[name](cell)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = str(error).replace("`", "")
        raise DataError(f"field {name!r}: {fields.shown(cell)} cannot be read: {reason}") from error


def _number(cell: str) -> float:
    """Read a number in any form that a spreadsheet may have written."""
    # Python reads 1_000 as a number; a spreadsheet does not.
    if "_" in cell:
        raise ValueError("not a number")
    try:
        # An int first: from 2**53 on a float would change an exact number without a word.
        return int(cell)
    except ValueError:
        return float(cell)


def _drained(buffer: io.StringIO) -> bytes:
    data = buffer.getvalue().encode()
    buffer.seek(0)
    buffer.truncate()
    return data


def _json(kind: object) -> Callable[[str], Any]:
    return msgspec.json.Decoder(kind).decode


_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_PARSERS: dict[str, Callable[[str], Any]] = {
    "reward": _number,
    "metadata": _json(dict[str, Any]),
    "step": _json(int),
    "messages": _json(list[dict[str, Any]]),
    "tools": _json(list[dict[str, Any]]),
    "tool_calls": _json(list[dict[str, Any]]),
    # Spreadsheets write TRUE and FALSE.
    "done": lambda cell: _json(bool)(cell.lower()),
    "timestamp": _number,
    "prompt_token_ids": _json(list[int]),
    "token_ids": _json(list[int]),
    "logprobs": _json(list[float]),
}
