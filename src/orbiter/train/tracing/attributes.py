"""Reads span attributes from OTLP JSON, parsing text that a trace repeats only once.

Each call of an agent repeats the chat so far, so most of a span's content was already read in an
earlier span. The bytes of the attributes are compared with those of the last span of the same name
in the trace, and reading continues where the two differ. Not here: what an attribute means.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from orbiter.train.json_files.walk import FOREIGN, decoded
from orbiter.train.tracing.otlp import AttributesOnly, KeyValue, plain
from orbiter.train.tracing.span import Draft, Sheet, sheet_of

ROOM = 8 << 20
"""The size of the cache, in bytes of attributes."""
SMALL = 1 << 10
"""Attributes shorter than this many bytes are not worth caching."""


class Attributes:
    """Reads attributes, caching those of the last large span of each name in each trace."""

    def __init__(self, room: int = ROOM) -> None:
        """Start with an empty cache of `room` bytes."""
        self._room = room
        self._last: OrderedDict[tuple[str, str], tuple[bytes, Draft]] = OrderedDict()

    def read(self, raw: msgspec.Raw, trace_id: str, name: str) -> Sheet:
        """Return the attributes of a span.

        Raises:
            DataError: they are malformed; the message says where.
        """
        data = bytes(raw)
        if len(data) < SMALL:
            return sheet_of(attributes_of(_pairs(data, data)))
        before, known = self._last.pop((trace_id, name), (b"", _NOTHING))
        self._room += len(before)
        at = _parting(before, data)
        # A key occurs only at the start of an attribute, so counting keys counts attributes.
        draft = known.begun(known.count - before.count(_NAME, at))
        begun = draft.count
        draft.take(_named(_pairs(b"[" + data[at:] if begun else data, data)))
        named = data.count(_NAME, at) == draft.count - begun and data.find(_NESTED, at) < 0
        if named and draft.is_plain():
            self._remember((trace_id, name), data, draft)
        return draft.sheet()

    def _remember(self, key: tuple[str, str], data: bytes, draft: Draft) -> None:
        self._last[key] = (data, draft)
        self._room -= len(data)
        while self._room < 0:
            forgotten, _ = self._last.popitem(last=False)[1]
            self._room += len(forgotten)


def attributes_of(pairs: Sequence[KeyValue] | None) -> dict[str, Any]:
    """Return the values of attributes by name."""
    return dict(_named(pairs))


def _named(pairs: Sequence[KeyValue] | None) -> Iterator[tuple[str, Any]]:
    for pair in pairs or ():
        value = pair.value
        text = value.string_value if value is not None else None
        yield pair.key, text if text is not None else plain(value)


def _parting(before: bytes, data: bytes) -> int:
    """Return the start of the first attribute that differs; 0 if no attribute is shared."""
    at, size = 0, 1 << 10
    end = min(len(before), len(data))
    while size:
        while at + size <= end and before[at : at + size] == data[at : at + size]:
            at += size
        size //= 4
    return max(data.rfind(_NAME, 0, at), 0)


def _pairs(part: bytes, whole: bytes) -> list[KeyValue] | None:
    pairs: list[KeyValue] | None
    try:
        pairs = _PAIRS.decode(part)
    except FOREIGN:
        # Decode it again inside an object, so that the error message contains the path.
        pairs = decoded(_IN_PLACE, b'{"attributes":' + whole + b"}").attributes
    return pairs


_NOTHING = Draft()
_NAME = b'{"key"'
_NESTED = b"kvlistValue"
_PAIRS = msgspec.json.Decoder(list[KeyValue] | None)
_IN_PLACE = msgspec.json.Decoder(AttributesOnly)
