"""Defines a span and reads its attributes, for file import and live capture alike.

Each call of an agent repeats the chat so far, so an earlier span already held most of its content.
`AttributeReader` therefore compares the bytes of the attributes with those of the last span of the
same name in the trace, and continues where the two differ. Each attribute name is parsed only once,
since most spans of a file have the same names. Not here: what the values mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.json_files.walk import FOREIGN, decoded
from orbiter.train.tracing.otlp import AttributesOnly, KeyValue, plain

ROOM = 8 << 20
"""The size of the cache, in bytes of attributes."""
SMALL = 1 << 10
"""Attributes shorter than this many bytes are not worth caching."""

Attributes = Mapping[str, Any]
Rows = dict[str, Any]
"""Attributes by the rest of their names, without prefix and number."""


@dataclass(slots=True)
class Piece:
    """One message or tool that is spread over attributes; spans with a common start share it."""

    rows: Rows
    messages: list[Message] | None = None
    """Its messages, once they were read."""


Spread = Mapping[str, Mapping[int, Piece]]
"""Pieces by prefix and number."""


class SpanEvent(NamedTuple):
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
    events: list[SpanEvent] = field(default_factory=list)
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
        pieces = self.spread.get(group)
        return [pieces[number] for number in sorted(pieces)] if pieces else []

    def weight(self) -> int:
        """Return the size of the attributes: bytes in the file, otherwise characters of text."""
        if self.size:
            return self.size
        rows = [piece.rows for pieces in self.spread.values() for piece in pieces.values()]
        values = (value for row in (self.attributes, *rows) for value in row.values())
        return sum(len(value) for value in values if isinstance(value, str))


class SpanAttributes(NamedTuple):
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
        """Create an empty draft."""
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
            # The attributes of one message are adjacent, so most only extend the last run.
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
        """Return a copy of this draft with only the first `count` attributes."""
        draft = Draft()
        draft.count = count
        draft.single = [entry for entry in self.single if entry[0] < count]
        draft.runs = [run for run in self.runs if run[0] < count]
        if draft.runs:
            first, group, number, piece = draft.runs[-1]
            # The last piece may have been cut in the middle of its attributes.
            if first + len(piece.rows) > count:
                rows = dict(islice(piece.rows.items(), count - first))
                draft.runs[-1] = (first, group, number, Piece(rows))
        return draft

    def is_plain(self) -> bool:
        """Return whether no attribute of a piece occurs twice, so that counting is reliable."""
        return self.count == len(self.single) + sum([len(run[3].rows) for run in self.runs])

    def finished(self) -> SpanAttributes:
        """Return the attributes read so far."""
        spread: dict[str, dict[int, Piece]] = {}
        at, places = "", dict[int, Piece]()
        for _, group, number, piece in self.runs:
            if group != at:
                at, places = group, spread.setdefault(group, {})
            # A piece whose attributes are not adjacent; a new one, since spans share pieces.
            if number in places:
                places[number] = Piece(places[number].rows | piece.rows)
            else:
                places[number] = piece
        return SpanAttributes({key: value for _, key, value in self.single}, spread)


def sorted_attributes(attributes: dict[str, Any]) -> SpanAttributes:
    """Sort attributes into single ones and pieces."""
    if all(place_of(key).number is None for key in attributes):
        return SpanAttributes(attributes, {})
    return Draft().take(attributes.items()).finished()


class AttributeReader:
    """Reads attributes, caching those of the last large span of each name in each trace."""

    def __init__(self, room: int = ROOM) -> None:
        """Create a reader with an empty cache of `room` bytes."""
        self._room = room
        self._last: OrderedDict[tuple[str, str], tuple[bytes, Draft]] = OrderedDict()

    def read(self, raw: msgspec.Raw, trace_id: str, name: str) -> SpanAttributes:
        """Return the attributes of a span.

        Raises:
            DataError: they are malformed; the message says where.
        """
        data = bytes(raw)
        if len(data) < SMALL:
            return sorted_attributes(attributes_of(_pairs(data, data)))
        # Popped, so that a remembered span moves to the end: the cache is by recency.
        before, known = self._last.pop((trace_id, name), (b"", _NOTHING))
        # Given back at once, as the old bytes are replaced or dropped.
        self._room += len(before)
        # Continue at the first attribute in which this span differs from the one before it.
        at = _parting(before, data)
        # A key occurs only at the start of an attribute, so counting keys counts attributes.
        draft = known.begun(known.count - before.count(_NAME, at))
        begun = draft.count
        draft.take(_named(_pairs(b"[" + data[at:] if begun else data, data)))
        # Only if counting keys really counts attributes may a later span continue from this one.
        named = data.count(_NAME, at) == draft.count - begun and data.find(_NESTED, at) < 0
        if named and draft.is_plain():
            self._remember((trace_id, name), data, draft)
        return draft.finished()

    def _remember(self, key: tuple[str, str], data: bytes, draft: Draft) -> None:
        self._last[key] = (data, draft)
        # May become negative, which the loop makes good at once.
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
    """Return the offset of the first attribute that differs; 0 if no attribute is shared."""
    at, size = 0, 1 << 10
    end = min(len(before), len(data))
    # Compared in blocks that get smaller, because a loop over bytes would be far slower.
    while size:
        while at + size <= end and before[at : at + size] == data[at : at + size]:
            at += size
        size //= 4
    # Back to the beginning of the attribute that contains the difference.
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


class AttributePlace(NamedTuple):
    """Which part of an item an attribute belongs to."""

    group: str
    number: int | None
    """The number of the message or tool, if the attribute is one piece of it."""
    name: str
    """The rest of the attribute's name."""


@lru_cache(maxsize=1 << 14)
def place_of(key: str) -> AttributePlace:
    """Return which part of an item an attribute belongs to, given its name."""
    if key in ENTRIES:
        return AttributePlace("entries", None, ENTRIES[key])
    if key in _IN_FIELDS:
        return AttributePlace("in_fields", None, key)
    for prefix, group in _GROUPS.items():
        if key.startswith(prefix):
            return AttributePlace(group, None, key[len(prefix) :])
    for prefix in SPREAD:
        number, _, name = key.removeprefix(prefix).partition(".")
        # isdigit alone is true for other scripts' digits, which int would read as well.
        if key.startswith(prefix) and number.isascii() and number.isdigit() and len(number) < 10:
            return AttributePlace(prefix, int(number), name)
    return AttributePlace("attributes", None, key)


SPREAD = (
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "llm.request.functions.",
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.tools.",
    "evaluations.",
    "annotations.",
)
"""The prefixes, before the number, of attributes that are pieces of a message or tool."""
_GROUPS = {"gen_ai.request.": "params", "gen_ai.usage.": "usage", "llm.token_count.": "usage"}
ENTRIES = {
    "gen_ai.response.model": "model",
    "gen_ai.request.model": "requested_model",
    "llm.model_name": "model",
    "llm.response.model_name": "model",
    "llm.request.model_name": "requested_model",
    "langfuse.observation.model.name": "model",
    "gen_ai.provider.name": "provider",
    "gen_ai.system": "provider",
    "llm.provider": "provider",
    "gen_ai.response.id": "response_id",
    "gen_ai.response.finish_reasons": "finish_reason",
    "llm.finish_reason": "finish_reason",
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.prompt_tokens": "input_tokens",
    "llm.token_count.prompt": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.completion_tokens": "output_tokens",
    "llm.token_count.completion": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_tokens",
    "llm.token_count.prompt_details.cache_read": "cached_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "gen_ai.usage.reasoning_tokens": "reasoning_tokens",
    "llm.token_count.completion_details.reasoning": "reasoning_tokens",
    "gen_ai.conversation.id": "conversation_id",
    "session.id": "conversation_id",
    "user.id": "user_id",
    "gen_ai.agent.id": "agent_id",
    "gen_ai.workflow.name": "workflow",
    "traceloop.workflow.name": "workflow",
    "llm.invocation_parameters": "invocation_parameters",
    "error.type": "error_type",
}
"""Attributes that become an entry of an item's metadata, with the name of the entry."""
_IN_FIELDS = frozenset(
    {
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.tool.definitions",
        "gen_ai.operation.name",
        "gen_ai.agent.name",
        "agent.name",
        "openinference.span.kind",
        "llm.request.type",
        "langfuse.observation.type",
        "langfuse.observation.input",
        "langfuse.observation.output",
        "input.value",
        "input.mime_type",
        "output.value",
        "output.mime_type",
        "gen_ai.evaluation.name",
        "gen_ai.evaluation.score.value",
        "gen_ai.evaluation.score.label",
        "gen_ai.evaluation.explanation",
    }
)
"""Attributes that go to fields of an item, or that mark a span as an item."""
