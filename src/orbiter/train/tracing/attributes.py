"""The attributes of spans, out of OTLP's JSON: what a trace says again and again is read once.

Each call of an agent repeats the chat so far, so that most of a file of traces was read already, a
span before. The bytes of a span's attributes are compared with those of the last span of the same
name in its trace, and reading goes on where the two part. Left out: what an attribute means.
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
"""Bytes of attributes that are remembered together."""
SMALL = 1 << 10
"""Bytes of attributes that are not worth remembering."""


class Attributes:
    """Reads attributes, and remembers those of the last large span of each name in each trace."""

    def __init__(self, room: int = ROOM) -> None:
        """Start with nothing remembered, and `room` bytes for what will be."""
        self._room = room
        self._last: OrderedDict[tuple[str, str], tuple[bytes, Draft]] = OrderedDict()

    def read(self, raw: msgspec.Raw, trace_id: str, name: str) -> Sheet:
        """Return the attributes of a span.

        Raises:
            DataError: they are none; the message says where.
        """
        data = bytes(raw)
        if len(data) < SMALL:
            return sheet_of(attributes_of(_pairs(data, data)))
        before, known = self._last.pop((trace_id, name), (b"", _NOTHING))
        self._room += len(before)
        at = _parting(before, data)
        # A name stands nowhere but at the beginning of an attribute: names count attributes.
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
    """Return attributes by name."""
    return dict(_named(pairs))


def _named(pairs: Sequence[KeyValue] | None) -> Iterator[tuple[str, Any]]:
    for pair in pairs or ():
        value = pair.value
        text = value.string_value if value is not None else None
        yield pair.key, text if text is not None else plain(value)


def _parting(before: bytes, data: bytes) -> int:
    """Return where the first attribute begins that the two do not share; 0 if they share none."""
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
        # The same again, in its place, so that the error tells the way to what is wrong.
        pairs = decoded(_IN_PLACE, b'{"attributes":' + whole + b"}").attributes
    return pairs


_NOTHING = Draft()
_NAME = b'{"key"'
_NESTED = b"kvlistValue"
_PAIRS = msgspec.json.Decoder(list[KeyValue] | None)
_IN_PLACE = msgspec.json.Decoder(AttributesOnly)
