"""Finds the spans that tell of the same model call, so that it becomes one item.

Three things make several spans of one call: two instrumentations that see it at once (that of an
agent framework, and that of the SDK below it), so that one span is inside or beside the other;
wrappers that are models themselves; and streams, of which some tracers first write a span without
an answer and, when the stream has ended, a second one with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from orbiter.train.chat.message import Message, text_of
from orbiter.train.chat.tool_calls import input_of, name_of
from orbiter.train.errors import DataError
from orbiter.train.tracing.dialects import Said
from orbiter.train.tracing.span import Span


class ModelCall(NamedTuple):
    """One model call."""

    span: Span
    said: Said
    also: tuple[Span, ...] = ()
    """Other spans that tell of it."""


def check_names(answers: Sequence[Message]) -> None:
    """Refuse an answer with a call that has no name: its attributes were not understood.

    Raises:
        DataError: a call has no name.
    """
    for answer in answers:
        for call in answer.get("tool_calls") or ():
            known = call.get("type") not in ("function", "custom")
            if not (known or name_of(call)):
                raise DataError(
                    f"a tool call in the answer has no name (its id: {call.get('id')!r}): the "
                    "attributes that hold it have a form that is not known"
                )


def one_per_call(
    calls: Sequence[ModelCall], parents: Mapping[str, str | None], dividing: AbstractSet[str]
) -> list[ModelCall]:
    """Return the calls without those that another span tells of too, which are joined to it.

    Args:
        calls: The calls of a trace, in the order of their start.
        parents: For each span of the trace, the one above it.
        dividing: The spans of agents and tool runs: a call below one of them is another call than
            the one above it.
    """
    kept: dict[int, ModelCall] = dict(enumerate(calls))
    places = {call.span.span_id: place for place, call in kept.items()}
    inner: dict[int, list[int]] = {}
    for place, call in kept.items():
        outer = _call_above(call.span, parents, places, dividing)
        if outer is not None:
            inner.setdefault(outer, []).append(place)
    for outer in sorted(inner, key=lambda place: -_depth(calls[place].span, parents)):
        _join_nested(kept, outer, [place for place in inner[outer] if place in kept])
    _join_twins(kept)
    _join_streams(kept)
    return [kept[place] for place in sorted(kept)]


def _call_above(
    span: Span,
    parents: Mapping[str, str | None],
    places: Mapping[str, int],
    dividing: AbstractSet[str],
) -> int | None:
    """Return the index of the call that a span is inside, with no agent or tool in between."""
    seen = {span.span_id}
    above = span.parent_id
    while above and above not in seen:
        if above in places:
            return places[above]
        if above in dividing:
            return None
        seen.add(above)
        above = parents.get(above)
    return None


def _depth(span: Span, parents: Mapping[str, str | None]) -> int:
    seen: set[str] = set()
    above = span.parent_id
    while above and above not in seen:
        seen.add(above)
        above = parents.get(above)
    return len(seen)


def _join_nested(kept: dict[int, ModelCall], outer: int, inner: Sequence[int]) -> None:
    """Join the calls inside a call to it, or it to them if it does not say what was said."""
    call = kept[outer]
    answered = [place for place in inner if kept[place].said.answers]
    if call.said.answers and call.said.prompt:
        for place in inner:
            said = kept[place].said
            silent = not said.answers and kept[place].span.error is None
            if silent or answered == [place] or (said.answers and _alike(said, call.said)):
                kept[outer] = call = _joined(call, kept.pop(place))
    elif answered:
        last = answered[-1]
        kept[last] = _joined(kept[last], kept.pop(outer))


def _join_twins(kept: dict[int, ModelCall]) -> None:
    """Join a call to one of another instrumentation that it runs within and is alike.

    Some frameworks do not tell the tracer of the SDK below them which span is open, so its span is
    beside theirs.
    """
    open_calls: list[int] = []
    for place in sorted(kept):
        call = kept[place]
        open_calls = [other for other in open_calls if kept[other].span.end > call.span.start]
        for other in open_calls:
            first = kept[other]
            within = first.span.start <= call.span.start and call.span.end <= first.span.end
            origins = {call.span.instrumentation, first.span.instrumentation}
            told = call.said.answers and first.said.answers and first.said.prompt
            if within and len(origins - {None}) == 2 and told and _alike(call.said, first.said):
                kept[other] = _joined(first, kept.pop(place))
                break
        else:
            open_calls.append(place)


def _join_streams(kept: dict[int, ModelCall]) -> None:
    """Join a call without an answer to the next one with the same prompt, which has the answer."""
    places = sorted(kept)
    for number, place in enumerate(places):
        call = kept[place]
        if call.said.answers or call.span.error is not None:
            continue
        for later in places[number + 1 :]:
            other = kept[later]
            same = other.span.parent_id == call.span.parent_id
            if same and other.said.answers and other.said.prompt == call.said.prompt:
                kept[later] = _joined(other, kept.pop(place))
                break


def _joined(call: ModelCall, other: ModelCall) -> ModelCall:
    tools = call.said.tools if call.said.tools is not None else other.said.tools
    return ModelCall(
        call.span, call.said._replace(tools=tools), (*call.also, other.span, *other.also)
    )


def _alike(said: Said, other: Said) -> bool:
    """Return whether two calls have the same first answer, whatever the form of its parts."""
    return _core(said.answers[0]) == _core(other.answers[0])


def _core(answer: Message) -> tuple[str, list[tuple[str, str]]]:
    calls = answer.get("tool_calls") or ()
    return (
        text_of(answer.get("content")).strip(),
        [(name_of(call), "".join(input_of(call).split())) for call in calls],
    )
