"""Raw request bytes, kept to detect cheaply that a later request extends this one.

An agent's next request mostly repeats its last one and appends messages to the list: the same bytes
up to the end of the old messages, and the same bytes after the list. Only the part in between
needs decoding. A request of any other shape is compared piece by piece.
"""

from __future__ import annotations

import msgspec

from orbiter.train.capture.wire import Part, Wire
from orbiter.train.chat.message import Json
from orbiter.train.chat.reply import Fields, Unreadable, decode, decode_fields


class Written:
    """The bytes of one request."""

    __slots__ = ("_parts", "head", "tail", "wire")

    def __init__(self, wire: Wire, head: bytes, tail: bytes, parts: list[Part] | None) -> None:
        self.wire = wire
        self.head = head
        """The bytes up to the end of the last message."""
        self.tail = tail
        """The bytes after `head`; empty if the end of the messages could not be located."""
        self._parts = parts

    @property
    def parts(self) -> list[Part]:
        """The pieces of its conversation."""
        if self._parts is None:
            self._parts = self.wire.parts(decode_fields(self.head + self.tail))
        return self._parts

    def goes_on_in(self, wire: Wire, body: bytes) -> bool:
        """Return whether another request may extend this one by messages at the end."""
        return (
            body.startswith(self.head)
            and body.endswith(self.tail)
            and len(body) >= len(self.head) + len(self.tail)
            and self.wire is wire
            and self.tail != b""
        )

    def new_in(self, body: bytes) -> list[Json] | None:
        """Return the messages that `body` appends to this request; None if it does not extend it.

        Call it only if `goes_on_in` returned True.
        """
        between = body[len(self.head) : len(body) - len(self.tail)].strip(b" \t\r\n")
        if not between:
            return []
        if not between.startswith(b","):
            return None
        try:
            # If these bytes are whole messages, the rest of `body` needs no check.
            new: list[Json] = decode(b"[%b]" % between[1:])
        except Unreadable:
            return None
        return new

    def grown(self, body: bytes) -> Written:
        """Return the request `body`, which extends this one."""
        return Written(self.wire, body[: len(body) - len(self.tail)], self.tail, None)

    def shared_with(self, other: Written) -> int:
        """Count the leading pieces that are equal."""
        count = 0
        for ours, theirs in zip(self.parts, other.parts, strict=False):
            if ours != theirs:
                break
            count += 1
        return count


def written(wire: Wire, body: bytes, fields: Fields, *, may_grow: bool) -> Written:
    """Locate the end of the message list in the request `body`, whose top level is `fields`."""
    parts = wire.parts(fields)
    end = _end_of_list(body, fields, wire.turns) if may_grow and parts else -1
    return (
        Written(wire, body[:end], body[end:], parts) if end > 0 else Written(wire, b"", b"", parts)
    )


def _end_of_list(body: bytes, fields: Fields, name: str) -> int:
    """Return where a field's list ends, before its bracket; -1 if that cannot be determined.

    The request is encoded again up to that point, in the two usual styles of JSON spacing: if the
    body begins with that text, the position is right.
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
