"""Reads JSON objects one at a time, from JSON lines or an array, and writes JSON lines.

Memory use is that of the longest object. Not here: what the objects mean.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple, NoReturn

import msgspec

from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import BOM, Source


class Record(NamedTuple):
    """One object of a file."""

    line: int
    """The line on which it begins, from 1."""
    value: dict[str, Any]


def read_records(source: Source) -> Iterator[Record]:
    """Yield the objects of a JSON-lines file, or of a JSON array if the file begins with `[`.

    A byte order mark and blank lines are allowed. Anything that is not an object is refused.
    """
    with source.open() as file:
        first = _first_byte(file)
        if first == b"":
            raise DataError(f"{source.path}:1: holds no records")
        yield from _read_array(source, file) if first == b"[" else _read_lines(source, file)


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object that has no repeated keys.

    Raises:
        DataError: the message says what is wrong, but not in which file or line.
    """
    return _as_object(decode_json(data, unique=True))


def decode_json(data: bytes | str, *, unique: bool = False) -> Any:  # noqa: ANN401 - any JSON
    """Decode a JSON value; NaN, which is not JSON, and half surrogate pairs are refused.

    Args:
        data: The text.
        unique: Also refuse an object with a repeated key, of which only the last would be kept.

    Raises:
        DataError: the message says what is wrong, but not in which file or line.
    """
    try:
        value = msgspec.json.decode(data)
        if unique:
            refuse_repeated_keys(data, value)
    except RecursionError as error:
        raise DataError("nested too deep") from error
    except UnicodeDecodeError as error:
        raise DataError("a text in it is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise DataError("has half a surrogate pair, which is not a text") from error
    except msgspec.DecodeError as error:
        raise DataError(_why_not_json(data, error)) from error
    return value


def _why_not_json(data: bytes | str, error: msgspec.DecodeError) -> str:
    raw = data.encode() if isinstance(data, str) else data
    # For msgspec, half a pair is a truncated escape.
    # (also in upper case: \uD83D)
    if b"\\ud" in raw.lower() and "truncated" in str(error):
        return "has half a surrogate pair, which is not a text"
    return f"not JSON: {str(error).removeprefix('JSON is malformed: ')}"


def refuse_repeated_keys(data: bytes | str, value: object) -> None:
    """Raise a `DataError` if an object in `data`, which decodes to `value`, repeats a key.

    Decoding drops all but the last of repeated keys, so encoding the value again gives fewer colons
    than the text has. Only then, or if a colon may be written as an escape, does the slow search
    run.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        colons = fields.encode(value).count(b":")
    except (OverflowError, UnicodeEncodeError, TypeError):
        # Not a number of colons, so the slow search runs: it accepts what msgspec cannot encode.
        colons = -1
    if raw.count(b":") == colons and not (b"\\" in raw and b"\\u003" in raw):
        return
    with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):  # msgspec accepts more
        json.loads(raw, object_pairs_hook=_unique)


def head_objects(head: bytes) -> list[dict[str, Any]]:
    """Return the complete objects in the first bytes of a file, for detection; never raises."""
    text = head.removeprefix(BOM).decode("utf-8", "ignore").lstrip()
    position = 1 if text.startswith("[") else 0
    objects: list[dict[str, Any]] = []
    # The head of a file is cut anywhere, so the last object is usually incomplete and ends the
    # loop.
    while (start := _BETWEEN.match(text, position)) and start.end() < len(text):
        try:
            value, position = _DECODER.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            break
        if isinstance(value, dict):
            objects.append(value)
    return objects


def first_object(head: bytes) -> dict[str, Any]:
    """Return the first object in the first bytes of a file, for detection; never raises.

    If it is cut off, the result has the keys that were seen, all with None; {} if there is no
    object.
    """
    objects = head_objects(head)
    return objects[0] if objects else dict.fromkeys(_first_keys(head))


def encode_record(value: Mapping[str, object]) -> bytes:
    """Encode an object as one line of JSON, with the newline."""
    return fields.encode(value) + b"\n"


def _first_keys(head: bytes) -> Iterator[str]:
    """Yield the keys of the outermost object at the start of a cut-off text."""
    text = head.removeprefix(BOM).decode("utf-8", "ignore").lstrip().removeprefix("[").lstrip()
    depth = 0
    for match in _STRUCTURE.finditer(text):
        if not (token := match[0]).startswith('"'):
            depth += 1 if token in "{[" else -1
        elif depth == 1 and text[match.end() :].lstrip().startswith(":"):
            yield token[1:-1]
        if depth == 0:
            return


def _first_byte(file: IO[bytes]) -> bytes:
    """Return the first byte that is not blank, and rewind the file."""
    # As long as a byte order mark.
    byte = file.read(3).removeprefix(BOM).lstrip()[:1]
    while byte == b"" and (more := file.read(4096)):
        byte = more.lstrip()[:1]
    file.seek(0)
    return byte


def _read_lines(source: Source, file: IO[bytes]) -> Iterator[Record]:
    for number, raw in enumerate(file, start=1):
        line = (raw.removeprefix(BOM) if number == 1 else raw).strip()
        if not line:
            continue
        try:
            yield Record(number, decode_object(line))
        except DataError as error:
            source.refuse(number, str(error), error)


def _read_array(source: Source, file: IO[bytes]) -> Iterator[Record]:
    """Yield the elements of an array up to the first one that is not JSON."""
    text = _Text(file)
    text.skip(re.compile(r"\s*\["))
    # No comma before the first element.
    wanted = _SPACE
    while (mark := text.peek(wanted)) != "]":
        try:
            if mark == "":
                raise DataError("the array has no end")
            value = text.take_value()
        except _BadElementError as error:
            source.refuse(text.taken_at, str(error), error)
            # The bad element was read to its end, so the next one begins after its comma.
            wanted = _COMMA
            continue
        except DataError as error:
            source.refuse(text.line, f"{error}: the rest is not read", error)
            return
        if not isinstance(value, dict):
            source.refuse(text.taken_at, _no_object(value))
        else:
            yield Record(text.taken_at, value)
        wanted = _COMMA
    text.skip(re.compile(r"\]"))
    if rest := text.peek(_SPACE):
        source.refuse(text.line, f"{rest!r} after the array")


class _BadElementError(DataError):
    """An element of an array is wrong, but the elements after it can be read."""


class _Text:
    """A window of text that moves over a file and tracks the line number."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        # A wrong byte must not end the reading of the elements around it.
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._chunk = 1 << 16
        self.line = 1
        self.taken_at = 1

    def peek(self, blank: re.Pattern[str]) -> str:
        """Skip `blank` and return the next character; "" at the end of the file."""
        while True:
            self.skip(blank)
            if self._text or not self._more():
                return self._text[:1]

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Move past a match of `pattern` at the current position, if there is one."""
        while not self._text and self._more():
            pass
        if match := pattern.match(self._text):
            self._move(match.end())

    def take_value(self) -> object:
        """Return the value that begins here, and move past it.

        Raises:
            DataError: it is not JSON.
        """
        size = self._chunk
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text)
            except RecursionError as error:
                raise DataError("nested too deep") from error
            except ValueError as error:
                if _certain(error, len(self._text)) or not self._more(size):
                    raise DataError(f"not JSON: {error}") from error
                size *= 2  # doubling means that a long value is scanned only a few times
            else:
                self.taken_at = self.line
                text = self._text[:end]
                self._move(end)
                try:
                    refuse_repeated_keys(text.encode("utf-8", "surrogateescape"), value)
                except DataError as error:
                    raise _BadElementError(str(error)) from error
                return value

    def _move(self, end: int) -> None:
        self.line += self._text.count("\n", 0, end)
        self._text = self._text[end:]

    def _more(self, size: int = 0) -> bool:
        data = self._file.read(size or self._chunk)
        self._text += self._decode(data, final=not data)
        return bool(data)


def _certain(error: ValueError, length: int) -> bool:
    """Return whether a value is really malformed, and not just cut off at the end of the window."""
    if not isinstance(error, json.JSONDecodeError):
        return True
    # Escapes and literals that are cut off are reported a little before the end.
    return error.pos < length - 32 and not error.msg.startswith("Unterminated string")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a repeated key."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"key {fields.shown(twice)} is repeated in one object")
    return value


def _as_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(_no_object(value))
    return value


def _no_object(value: object) -> str:
    return f"expected an object, got {fields.shown(value)}"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
# A cut-off text matches too; otherwise every quote inside it would be tried as a start.
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_SPACE = re.compile(r"\s*")
_COMMA = re.compile(r"\s*,?\s*")
_BETWEEN = re.compile(r"[\s,]*")
