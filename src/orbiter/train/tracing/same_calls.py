"""Finds the spans that report the same model call, so that it becomes one item.

One call can have several spans for three reasons. Two instrumentations record it (that of an agent
framework, and that of the SDK below it), and one span is inside the other or next to it. A model
wraps another model. For a stream, some tracers first write a span without an answer and, when the
stream has ended, a second one with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from orbiter.train.chat.message import Message, text_of
from orbiter.train.chat.tool_calls import input_of, name_of
from orbiter.train.errors import DataError
from orbiter.train.tracing.dialects import CallContent
from orbiter.train.tracing.span import Span


class ModelCall(NamedTuple):
    """One model call."""

    span: Span
    content: CallContent
    also: tuple[Span, ...] = ()
    """Other spans that report it."""


def check_names(answers: Sequence[Message]) -> None:
    """Refuse an answer with a tool call that has no name, since its attributes were misread.

    Raises:
        DataError: a call has no name.
    """
    for answer in answers:
        for call in answer.get("tool_calls") or ():
            known = call.get("type") not in ("function", "custom")
            if not (known or name_of(call)):
                raise DataError(
                    f"a tool call in the answer has no name (its id: {call.get('id')!r}): the "
                    "attributes that hold it have an unknown form"
                )


def one_per_call(
    calls: Sequence[ModelCall], parents: Mapping[str, str | None], dividing: AbstractSet[str]
) -> list[ModelCall]:
    """Merge the spans that report the same call, and return one entry per call.

    Args:
        calls: The calls of a trace, in the order of their start.
        parents: The parent of each span of the trace.
        dividing: The spans of agents and tool runs: a call below one of them is never the same as a
            call above it.
    """
    kept: dict[int, ModelCall] = dict(enumerate(calls))
    indices = {call.span.span_id: index for index, call in kept.items()}
    inner: dict[int, list[int]] = {}
    for index, call in kept.items():
        outer = _call_above(call.span, parents, indices, dividing)
        if outer is not None:
            inner.setdefault(outer, []).append(index)
    # The innermost first, so that a call inside a call inside a call is merged step by step.
    for outer in sorted(inner, key=lambda index: -_depth(calls[index].span, parents)):
        _join_nested(kept, outer, [index for index in inner[outer] if index in kept])
    # After the nested ones: a twin may itself have been merged with what is inside it.
    _join_twins(kept)
    _join_streams(kept)
    return [kept[index] for index in sorted(kept)]


def _call_above(
    span: Span,
    parents: Mapping[str, str | None],
    indices: Mapping[str, int],
    dividing: AbstractSet[str],
) -> int | None:
    """Return the index of the call that a span is inside, with no agent or tool in between."""
    seen = {span.span_id}
    above = span.parent_id
    while above and above not in seen:
        if above in indices:
            return indices[above]
        # An agent or a tool in between makes its own calls, even if their answers are the same.
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
    """Merge an outer call with the inner calls that repeat it; the side with content is kept."""
    call = kept[outer]
    answered = [index for index in inner if kept[index].content.answers]
    if call.content.answers and call.content.prompt:
        # An inner span without an answer is the same call, recorded by a tracer that does not store
        # content. Several different answers are separate calls, made by an outer span of an agent.
        for index in inner:
            content = kept[index].content
            unanswered = not content.answers and kept[index].span.error is None
            if (
                unanswered
                or answered == [index]
                or (content.answers and _alike(content, call.content))
            ):
                kept[outer] = call = _joined(call, kept.pop(index))
    elif answered:
        # The outer span has no content itself: it describes the last inner call.
        last = answered[-1]
        kept[last] = _joined(kept[last], kept.pop(outer))


def _join_twins(kept: dict[int, ModelCall]) -> None:
    """Merge a call with a concurrent equal one that another instrumentation recorded.

    Some frameworks do not tell the tracer of the SDK below them which span is open, so its span is
    beside theirs.
    """
    open_calls: list[int] = []
    for index in sorted(kept):
        call = kept[index]
        # Calls come in the order of their start, so ended ones can never contain a later one.
        open_calls = [earlier for earlier in open_calls if kept[earlier].span.end > call.span.start]
        for earlier in open_calls:
            first = kept[earlier]
            within = first.span.start <= call.span.start and call.span.end <= first.span.end
            origins = {call.span.instrumentation, first.span.instrumentation}
            have_content = call.content.answers and first.content.answers and first.content.prompt
            if (
                within
                # The same instrumentation does not record an answered call twice: two equal ones
                # are two calls.
                and len(origins - {None}) == 2
                and have_content
                and _alike(call.content, first.content)
            ):
                kept[earlier] = _joined(first, kept.pop(index))
                break
        else:
            open_calls.append(index)


def _join_streams(kept: dict[int, ModelCall]) -> None:
    """Merge a call without an answer with the next call that has the same prompt and an answer."""
    indices = sorted(kept)
    for number, index in enumerate(indices):
        call = kept[index]
        if call.content.answers or call.span.error is not None:
            continue
        for later in indices[number + 1 :]:
            other = kept[later]
            # Siblings only; an equal prompt elsewhere in the trace may be a retry.
            same = other.span.parent_id == call.span.parent_id
            if same and other.content.answers and other.content.prompt == call.content.prompt:
                kept[later] = _joined(other, kept.pop(index))
                break


def _joined(call: ModelCall, other: ModelCall) -> ModelCall:
    tools = call.content.tools if call.content.tools is not None else other.content.tools
    return ModelCall(
        call.span, call.content._replace(tools=tools), (*call.also, other.span, *other.also)
    )


def _alike(content: CallContent, other_content: CallContent) -> bool:
    """Return whether two calls have the same first answer, whatever the form of its parts."""
    return _comparable(content.answers[0]) == _comparable(other_content.answers[0])


def _comparable(answer: Message) -> tuple[str, list[tuple[str, str]]]:
    calls = answer.get("tool_calls") or ()
    return (
        # Tracers differ in blanks and in the ids of calls.
        text_of(answer.get("content")).strip(),
        [(name_of(call), "".join(input_of(call).split())) for call in calls],
    )
