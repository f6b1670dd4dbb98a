"""The span type, shared by file import and live capture, and its attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from orbiter.train.chat.message import Message
from orbiter.train.tracing.keys import place_of

Attributes = Mapping[str, Any]
Rows = dict[str, Any]
"""Attributes by the rest of their names, without prefix and number."""


@dataclass(slots=True)
class Piece:
    """One message or tool that is spread over attributes; spans with a common start share it."""

    rows: Rows
    said: list[Message] | None = None
    """Its messages, once they were read."""


Spread = Mapping[str, Mapping[int, Piece]]
"""Pieces by prefix and number."""


class Event(NamedTuple):
    """An event within a span."""

    name: str
    attributes: Attributes


@dataclass(slots=True)
class Span:
    """One span."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start: int
    """Nanoseconds since 1970; 0 if unknown."""
    end: int
    attributes: Attributes
    """The attributes that are not pieces of a message or tool."""
    events: list[Event] = field(default_factory=list)
    error: str | None = None
    dropped: int = 0
    """The number of attributes that the tracer dropped because of a limit."""
    service: str | None = None
    instrumentation: str | None = None
    line: int = 0
    """The line in the file, from 1."""
    spread: Spread = field(default_factory=dict[str, Mapping[int, Piece]])
    """The attributes that are pieces of a message or tool."""
    size: int = 0
    """The size of the attributes in the file, in bytes; 0 if they are not from a file."""

    def numbered(self, group: str) -> list[Piece]:
        """Return the pieces of a group's messages or tools, in the order of their numbers."""
        found = self.spread.get(group)
        return [found[number] for number in sorted(found)] if found else []

    def weight(self) -> int:
        """Return the size of the attributes: bytes in the file, otherwise characters of text."""
        if self.size:
            return self.size
        rows = [piece.rows for pieces in self.spread.values() for piece in pieces.values()]
        told = (value for row in (self.attributes, *rows) for value in row.values())
        return sum(len(value) for value in told if isinstance(value, str))


class Sheet(NamedTuple):
    """The attributes of a span."""

    single: dict[str, Any]
    """The attributes that are not pieces of a message or tool."""
    spread: Spread
    """The attributes that are pieces of a message or tool."""


Run = tuple[int, str, int, Piece]
"""Adjacent attributes of one piece: the index of the first one among the span's attributes, the
group, the number, the piece."""


class Draft:
    """The attributes of a span while they are being read."""

    __slots__ = ("count", "runs", "single")

    def __init__(self) -> None:
        """Start without attributes."""
        self.count = 0
        self.single: list[tuple[int, str, Any]] = []
        self.runs: list[Run] = []

    def take(self, attributes: Iterable[tuple[str, Any]]) -> Draft:
        """Add further attributes and return the draft."""
        count = self.count
        rows: Rows = {}
        last_group, last_number = "", None
        for key, value in attributes:
            group, number, name = place_of(key)
            if number is None:
                self.single.append((count, key, value))
            elif number == last_number and group == last_group:
                rows[name] = value
            else:
                rows = {name: value}
                self.runs.append((count, group, number, Piece(rows)))
            last_group, last_number = group, number
            count += 1
        self.count = count
        return self

    def begun(self, count: int) -> Draft:
        """Return a draft of the first `count` attributes."""
        draft = Draft()
        draft.count = count
        draft.single = [one for one in self.single if one[0] < count]
        draft.runs = [run for run in self.runs if run[0] < count]
        if draft.runs:
            first, group, number, piece = draft.runs[-1]
            if first + len(piece.rows) > count:
                rows = dict(islice(piece.rows.items(), count - first))
                draft.runs[-1] = (first, group, number, Piece(rows))
        return draft

    def is_plain(self) -> bool:
        """Say whether no attribute of a piece occurs twice, so that counting them is reliable."""
        return self.count == len(self.single) + sum([len(run[3].rows) for run in self.runs])

    def sheet(self) -> Sheet:
        """Return the attributes that were read."""
        spread: dict[str, dict[int, Piece]] = {}
        at, places = "", dict[int, Piece]()
        for _, group, number, piece in self.runs:
            if group != at:
                at, places = group, spread.setdefault(group, {})
            if number in places:
                places[number] = Piece(places[number].rows | piece.rows)
            else:
                places[number] = piece
        return Sheet({key: value for _, key, value in self.single}, spread)


def sheet_of(attributes: dict[str, Any]) -> Sheet:
    """Sort attributes into single ones and pieces."""
    if all(place_of(key).number is None for key in attributes):
        return Sheet(attributes, {})
    return Draft().take(attributes.items()).sheet()
