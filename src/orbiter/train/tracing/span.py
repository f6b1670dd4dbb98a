"""A span, whether it was read from a file or ended just now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from orbiter.train.chat.message import Message
from orbiter.train.tracing.keys import place_of

Attributes = Mapping[str, Any]
Rows = dict[str, Any]
"""Attributes, by what is left of their names."""


@dataclass(slots=True)
class Piece:
    """One message or tool that is spread over attributes; spans that begin alike share it."""

    rows: Rows
    said: list[Message] | None = None
    """What it says, once that was read."""


Spread = Mapping[str, Mapping[int, Piece]]
"""Pieces, by what stands before their numbers and by these."""


class Event(NamedTuple):
    """Something that happened within a span."""

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
    """Nanoseconds since 1970; 0 where it is not told."""
    end: int
    attributes: Attributes
    """Those that say something by themselves."""
    events: list[Event] = field(default_factory=list)
    error: str | None = None
    dropped: int = 0
    """Attributes that a limit of the tracer threw away."""
    service: str | None = None
    instrumentation: str | None = None
    line: int = 0
    """In the file, from 1."""
    spread: Spread = field(default_factory=dict[str, Mapping[int, Piece]])
    """Attributes that are one piece of many."""
    size: int = 0
    """Bytes that the attributes have in the file; 0 where they are in none."""

    def numbered(self, group: str) -> list[Piece]:
        """Return the pieces of a group's messages or tools, in the order of their numbers."""
        found = self.spread.get(group)
        return [found[number] for number in sorted(found)] if found else []

    def weight(self) -> int:
        """Return how long the attributes are: in the file, or else their text."""
        if self.size:
            return self.size
        rows = [piece.rows for pieces in self.spread.values() for piece in pieces.values()]
        told = (value for row in (self.attributes, *rows) for value in row.values())
        return sum(len(value) for value in told if isinstance(value, str))


class Sheet(NamedTuple):
    """The attributes of a span."""

    single: dict[str, Any]
    """Those that say something by themselves."""
    spread: Spread
    """Those that are one piece of many."""


Run = tuple[int, str, int, Piece]
"""Attributes that stand together and are of one piece: the place of the first among the span's
attributes, the group, the number, the piece."""


class Draft:
    """The attributes of a span, being read one after the other."""

    __slots__ = ("count", "runs", "single")

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0
        self.single: list[tuple[int, str, Any]] = []
        self.runs: list[Run] = []

    def take(self, attributes: Iterable[tuple[str, Any]]) -> Draft:
        """Read on."""
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
        """Return the first `count` attributes."""
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
        """Say whether no attribute of a piece is there twice, so that they can be counted."""
        return self.count == len(self.single) + sum([len(run[3].rows) for run in self.runs])

    def sheet(self) -> Sheet:
        """Return what was read."""
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
    """Return attributes by where they go."""
    if all(place_of(key).number is None for key in attributes):
        return Sheet(attributes, {})
    return Draft().take(attributes.items()).sheet()
