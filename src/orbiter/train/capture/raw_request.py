"""A request as it was written, to see at a glance whether another one goes on from it.

An agent's next request mostly repeats its last one and puts messages at the end of the list: the
same bytes up to the end of the old messages, and the same bytes behind them. What stands between is
all there is to read. Where a request is no such thing, it is compared piece by piece.
"""

from __future__ import annotations

import msgspec

from orbiter.train.capture.wire import Part, Wire
from orbiter.train.chat.message import Json
from orbiter.train.chat.reply import Fields, Unreadable, decode, decode_fields


class Written:
    """One request's bytes."""

    __slots__ = ("_parts", "head", "tail", "wire")

    def __init__(self, wire: Wire, head: bytes, tail: bytes, parts: list[Part] | None) -> None:
        self.wire = wire
        self.head = head
        """Up to the end of its last message."""
        self.tail = tail
        """Behind that; empty where messages have no place of their own."""
        self._parts = parts

    @property
    def parts(self) -> list[Part]:
        """The pieces of its conversation."""
        if self._parts is None:
            self._parts = self.wire.parts(decode_fields(self.head + self.tail))
        return self._parts

    def goes_on_in(self, wire: Wire, body: bytes) -> bool:
        """Say whether another request may be this one with more at the end of its messages."""
        return (
            body.startswith(self.head)
            and body.endswith(self.tail)
            and len(body) >= len(self.head) + len(self.tail)
            and self.wire is wire
            and self.tail != b""
        )

    def new_in(self, body: bytes) -> list[Json] | None:
        """Return the messages that `body`, which may go on from here, adds; None where not so."""
        between = body[len(self.head) : len(body) - len(self.tail)].strip(b" \t\r\n")
        if not between:
            return []
        if not between.startswith(b","):
            return None
        try:
            # These being whole messages, `body` has the form of this request: no need to look.
            new: list[Json] = decode(b"[%b]" % between[1:])
        except Unreadable:
            return None
        return new

    def grown(self, body: bytes) -> Written:
        """Return the request `body`, which goes on from here."""
        return Written(self.wire, body[: len(body) - len(self.tail)], self.tail, None)

    def shared_with(self, other: Written) -> int:
        """Count the first pieces that are the same."""
        count = 0
        for ours, theirs in zip(self.parts, other.parts, strict=False):
            if ours != theirs:
                break
            count += 1
        return count


def written(wire: Wire, body: bytes, fields: Fields, *, may_grow: bool) -> Written:
    """Return the request `body`, whose top level is `fields`."""
    parts = wire.parts(fields)
    end = _end_of_list(body, fields, wire.turns) if may_grow and parts else -1
    return (
        Written(wire, body[:end], body[end:], parts) if end > 0 else Written(wire, b"", b"", parts)
    )


def _end_of_list(body: bytes, fields: Fields, name: str) -> int:
    """Return where a field's list ends, before its bracket; -1 where it is none, or hard to say.

    The request is written anew up to there, in the two ways in which JSON is written without
    thought for its reader: if it begins so, the place is right.
    """
    value = bytes(fields.get(name) or b"")
    if not value.endswith(b"]") or len(value) < len(b"[{}]"):
        return -1
    for comma, colon in ((b",", b":"), (b", ", b": ")):
        start = _before(fields, name, comma, colon)
        if body.startswith(start) and body.startswith(value, len(start)):
            return len(start) + len(value) - 1
    return -1


def _before(fields: Fields, name: str, comma: bytes, colon: bytes) -> bytes:
    """Write an object up to the value of a field."""
    written = [b"{"]
    for other, value in fields.items():
        written += (msgspec.json.encode(other), colon)
        if other == name:
            break
        written += (bytes(value), comma)
    return b"".join(written)
