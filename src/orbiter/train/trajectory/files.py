"""Reads and writes items as a JSON array or as JSON lines, checking each item.

Not here: CSV (`csv_files.py`) and the formats of other tools (`orbiter.train.formats`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

import msgspec

from orbiter.train.errors import DataError
from orbiter.train.json_files.source import BOM, Extra, OnError, Skipped, Source
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory.codec import decode_item, encode_item
from orbiter.train.trajectory.item import TrajectoryItem

CHUNK = 512
"""The number of lines per write."""


def export_jsonl(items: Iterable[TrajectoryItem], path: str | os.PathLike[str]) -> int:
    """Write one object per line; return their number."""
    with atomic_write(path) as file:
        return _write_chunks(file, map(encode_item, items), b"\n", b"\n")


def export_json(items: Iterable[TrajectoryItem], path: str | os.PathLike[str]) -> int:
    """Write one array with one object per line; return their number."""
    with atomic_write(path) as file:
        file.write(b"[\n")
        count = _write_chunks(file, map(encode_item, items), b",\n", b"")
        file.write(b"\n]\n" if count else b"]\n")
    return count


def read_jsonl(
    path: str | os.PathLike[str], on_error: OnError, extra: Extra, skipped: list[Skipped]
) -> Iterator[TrajectoryItem]:
    """Yield the items of a JSON-lines file; a byte order mark and blank lines are allowed."""
    source = Source(path, on_error, extra, skipped)
    metadata = source.extra_to_metadata
    empty = True
    with source.open() as file:
        for number, raw in enumerate(file, start=1):
            line = (raw.removeprefix(BOM) if number == 1 else raw).rstrip()
            if not line:
                continue
            empty = False
            try:
                yield decode_item(line, extra_to_metadata=metadata)
            except DataError as error:
                source.refuse(number, str(error), error)
    if empty:
        raise DataError(f"{source.path}:1: holds no items: expected one JSON object a line")


def read_json(
    path: str | os.PathLike[str], on_error: OnError, extra: Extra, skipped: list[Skipped]
) -> Iterator[TrajectoryItem]:
    """Yield the items of a JSON array; a byte order mark is allowed."""
    source = Source(path, on_error, extra, skipped)
    with source.open() as file:
        data = file.read().removeprefix(BOM)
    if not data.lstrip().startswith(b"["):
        raise DataError(
            f"{source.path}:1: expected a JSON array of items"
            + (" (from_jsonl reads one object a line)" if data.lstrip()[:1] == b"{" else "")
        )
    try:
        # Raw elements: one bad item must not make the whole array unreadable.
        elements = _ARRAY.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield from _read_broken_array(source, data)
        return
    offset, line = 0, 1
    for element in elements:
        # A Raw is a view of the whole file, which it would keep alive.
        part = bytes(element)
        # msgspec does not say where a raw element was, only that it follows the one before.
        start = data.index(part, offset)
        line += data.count(b"\n", offset, start)
        try:
            yield decode_item(part, extra_to_metadata=source.extra_to_metadata)
        except DataError as error:
            source.refuse(line, str(error), error)
        line += part.count(b"\n")
        offset = start + len(part)


def _write_chunks(file: IO[bytes], lines: Iterator[bytes], between: bytes, after: bytes) -> int:
    count = 0
    while chunk := list(islice(lines, CHUNK)):
        if count:
            file.write(between)
        file.write(between.join(chunk))
        count += len(chunk)
    if count:
        file.write(after)
    return count


def _read_broken_array(source: Source, data: bytes) -> Iterator[TrajectoryItem]:
    """Read as many elements as possible: a bad element does not hide those after it."""
    # A wrong byte becomes a lone surrogate, so that the element that has it is the only one
    # refused.
    text = data.decode("utf-8", "surrogateescape")
    position = _end_of_space(text, 0) + 1
    line, counted = 1, 0
    expected = True
    while True:
        position = _end_of_space(text, position)
        # Count newlines from the last position: counting from the start would take quadratic time.
        line, counted = line + text.count("\n", counted, position), position
        if not expected or text.startswith("]", position):
            break
        end = _element_end(text, position)
        part = text[position:end].encode("utf-8", "surrogateescape")
        try:
            yield decode_item(part, extra_to_metadata=source.extra_to_metadata)
        except DataError as error:
            source.refuse(line, str(error), error)
        position = _end_of_space(text, end)
        expected = text.startswith(",", position)
        position += expected
    if text[position:].strip() != "]":
        rest = text[position : position + 20]
        source.refuse(line, f"expected the end of the array, got {rest!r}: the rest is not read")


def _end_of_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _element_end(text: str, start: int) -> int:
    """Return where an element ends; if it is not JSON, that is the end of the text."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        # An unreadable element hides where the next one begins, so it ends the reading.
        return len(text)


_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
