"""Walks through a huge JSON document without loading it; the caller enters or skips each value.

A window moves over the file. msgspec, which scans a gigabyte per second, finds the end of each
value; only a value that it cannot read is scanned here, so that one bad element of an array does
not hide the elements after it. Not here: what the values mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any, TypeVar

import msgspec

from orbiter.train.errors import DataError, StorageError
from orbiter.train.json_files.records import refuse_repeated_keys
from orbiter.train.json_files.source import BOM, Source

T = TypeVar("T")

CHUNK = 1 << 20
"""The number of bytes per read."""
LONGEST = 64 << 20
"""The largest value, in bytes, that is read whole."""


class BrokenDocumentError(DataError):
    """The document is malformed at this point, so nothing after it can be read."""


class Walk:
    """A position in a JSON document that only moves forward."""

    def __init__(
        self, file: IO[bytes], read: bytes = b"", *, line: int = 1, offset: int = 0
    ) -> None:
        """Start at the bytes in `read`, already read from `file` at this line and offset."""
        self._file = file
        self._window = read
        self._at = 0
        self._line = line
        self._counted = 0
        self._bytes_before = offset
        self._ended = False

    @property
    def line(self) -> int:
        """The current line of the file, from 1."""
        self._line += self._window.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    @property
    def byte(self) -> int:
        """The current byte of the file, from 1."""
        return self._bytes_before + self._at + 1

    def peek(self) -> bytes:
        """Skip blank space and return the next byte; b"" at the end of the file."""
        while True:
            self._at = _end_of(_SPACE, self._window, self._at)
            if self._at < len(self._window) or not self._more():
                return self._window[self._at : self._at + 1]

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; after each, take or skip its value."""
        for _ in self._inside(b"{", b"}"):
            try:
                key = self.take(_KEYS)
            except DataError as error:
                raise BrokenDocumentError(f"a key of an object: {error}") from error
            self._pass(b":")
            yield key

    def elements(self) -> Iterator[None]:
        """Advance to each element of the array at the current position; take or skip each one."""
        return self._inside(b"[", b"]")

    def take(self, decoder: msgspec.json.Decoder[T], *, unique: bool = False) -> T:
        """Return the value that begins here and move past it, even if it is bad.

        Args:
            decoder: Decodes the value.
            unique: Whether a repeated key is an error; without it the last one wins.

        Raises:
            DataError: the value is not JSON, or not of the decoder's type, or repeats a key.
            BrokenDocumentError: the value has no end.
        """
        self.peek()
        end = self._end()
        piece, self._at = self._window[self._at : end], end
        value = decoded(decoder, piece)
        if unique:
            refuse_repeated_keys(piece, value)
        return value

    def take_like(self, decoder: msgspec.json.Decoder[T]) -> T:
        """Return an array element, scanned only once if all elements begin with the same key.

        The element is assumed to end where that key next begins an object. If the key was inside
        the element, the piece does not decode, and `take` reads it instead.
        """
        self.peek()
        if (mark := _FIRST_KEY.match(self._window, self._at)) is not None:
            # The same key at the start of another object, as traces repeat it: `{"traceId"` begins
            # each span.
            following = self._window.find(mark[0], mark.end())
            piece = self._window[self._at : max(following, 0)].rstrip()
            if piece.endswith(b","):
                try:
                    value = decoder.decode(piece[:-1])
                except FOREIGN:
                    return self.take(decoder)
                # The comma remains, since `_inside` expects it.
                self._at += len(piece) - 1
                return value
        return self.take(decoder)

    def skip(self) -> None:
        """Move past the value that begins here."""
        self.peek()
        self._at = self._end()

    def _inside(self, opened: bytes, closed: bytes) -> Iterator[None]:
        self._pass(opened)
        if self.peek() == closed:
            self._at += 1
            return
        while True:
            self.peek()
            yield
            if self.peek() == closed:
                self._at += 1
                return
            self._pass(b",")

    def _pass(self, expected: bytes) -> None:
        next_byte = self.peek()
        if next_byte != expected:
            got = repr(next_byte.decode("utf-8", "replace")) if next_byte else "the end of the file"
            raise BrokenDocumentError(f"expected {expected.decode()!r}, got {got}")
        self._at += 1

    def _end(self) -> int:
        """Return where the value that begins here ends."""
        while True:
            end = _where_value_ends(self._window, self._at)
            # A number at the end of the window may go on in the file.
            if end is not None and (end < len(self._window) or not self._more()):
                return end
            if end is None and len(self._window) - self._at > LONGEST:
                raise BrokenDocumentError(f"a value of more than {LONGEST >> 20} MiB")
            if end is None and not self._more():
                raise BrokenDocumentError(
                    "the file ends in the middle of a value, or the value is not JSON"
                )

    def _more(self) -> bool:
        """Read at least as much as is unread, so that a long value is scanned only a few times."""
        if self._ended:
            return False
        try:
            # Doubling, as a value that is longer than the window is scanned from its start each
            # time.
            data = self._file.read(max(CHUNK, len(self._window) - self._at))
        except OSError as error:
            raise StorageError(f"cannot read the rest: {error.strerror}") from error
        # Counts the lines of the part that is dropped next.
        self._line = self.line
        self._bytes_before += self._at
        self._window = self._window[self._at :] + data
        self._at = self._counted = 0
        self._ended = not data
        return bool(data)


def decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """Decode a JSON value.

    Raises:
        DataError: the message says what is wrong, but not in which file or line.
    """
    try:
        return decoder.decode(data)
    except UnicodeDecodeError as error:
        raise DataError("a text in it is not UTF-8") from error
    except RecursionError as error:
        raise DataError("nested too deep") from error
    except msgspec.ValidationError as error:
        raise DataError(str(error).replace("`", "")) from error
    except msgspec.DecodeError as error:
        # msgspec reads \ud83d without its second half as an escape that is cut off.
        if b"\\ud" in data.lower() and "truncated" in str(error):
            raise DataError("has half a surrogate pair, which is not a text") from error
        raise DataError(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}") from error


def objects_in(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their line numbers, from a sequence or an array."""
    with source.open() as file:
        walk = Walk(file, file.read(len(BOM)).removeprefix(BOM))
        any_object = False
        try:
            while walk.peek():
                any_object = True
                for _ in walk.elements() if walk.peek() == b"[" else (None,):
                    line = walk.line
                    try:
                        value = walk.take(_OBJECT, unique=True)
                    # A subclass of the DataError below, which would leave out one element and
                    # continue in a file whose next element cannot be found.
                    except BrokenDocumentError:
                        raise
                    except DataError as error:
                        source.refuse(line, str(error), error)
                    else:
                        yield line, value
        except BrokenDocumentError as error:
            reason = f"{error} (byte {walk.byte}): the rest is not read"
            source.refuse(walk.line, reason, error)
    if not any_object:
        raise DataError(f"{source.path}:1: holds nothing")


def _where_value_ends(window: bytes, at: int) -> int | None:
    """Return the end of the value at `at`; None if the window ends first or it is malformed."""
    try:
        _RAW.decode(memoryview(window)[at:])
    except msgspec.DecodeError as error:
        # msgspec has no call that returns where a value ends. Its message about the bytes after the
        # value does, counted from 1.
        if behind := _BEHIND.search(str(error)):
            return at + int(behind[1]) - 1
    except RecursionError:
        pass
    else:
        return len(window)
    return _balanced(window, at)


def _balanced(window: bytes, at: int) -> int | None:
    """Find the end of an object or array by counting brackets, whatever else is in it."""
    depth = 0
    for token in _TOKEN.finditer(window, at):
        if token[0] in b"{[":
            depth += 1
        elif token[0] in b"}]":
            depth -= 1
        # At depth 0 the bracket closes the value; a text or a stray bracket ends at once.
        if depth <= 0:
            return token.end()
    return None


def _end_of(pattern: re.Pattern[bytes], window: bytes, at: int) -> int:
    match = pattern.match(window, at)
    return match.end() if match else at


_OBJECT = msgspec.json.Decoder(dict[str, Any])
FOREIGN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_RAW = msgspec.json.Decoder(msgspec.Raw)
_KEYS = msgspec.json.Decoder(str)
_BEHIND = re.compile(r"trailing characters \(byte (\d+)\)")
_SPACE = re.compile(rb"[ \t\r\n]*")
_FIRST_KEY = re.compile(rb'\{[ \t\r\n]*"[^"\\]*"')
# The possessive `++` and `*+` keep an unfinished text from being tried at every split of it.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
