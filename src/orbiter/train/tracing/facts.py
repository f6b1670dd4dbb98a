"""Extracts everything but the messages from a span: model, parameters, scores and tool runs.

Not here: the messages (`dialects.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from orbiter.train.chat.message import REASONING
from orbiter.train.tracing.dialects import openinference_scores
from orbiter.train.tracing.span import ENTRIES, Attributes, Span, place_of


class Score(NamedTuple):
    """The result of an evaluation."""

    span_id: str
    """The span that was evaluated, or the one on which the result was recorded."""
    response_id: str | None
    """The id of the answer that was evaluated, if it is given."""
    entry: dict[str, Any]
    """Those of name, score, label and explanation that are given."""


def says_something(span: Span) -> bool:
    """Say whether a span may be a call or a tool run, or name an agent or a score."""
    return bool(span.events or span.spread) or not _TELLING.isdisjoint(span.attributes)


def is_call(span: Span) -> bool:
    """Say whether a span is one model call (and not one of an agent, a tool or an embedding)."""
    told = span.attributes
    operation = told.get("gen_ai.operation.name")
    if isinstance(operation, str):
        return operation in _CALLS
    return (
        told.get("openinference.span.kind") == "LLM"
        or str(told.get("llm.request.type")) in _CALLS
        or told.get("langfuse.observation.type") == "generation"
        or not _first_names(span, "gen_ai.prompt.").isdisjoint(_SPOKEN)
        or not _first_names(span, "gen_ai.completion.").isdisjoint(_SPOKEN)
    )


def is_tool_run(span: Span) -> bool:
    """Say whether a span is one tool run."""
    told = span.attributes
    return (
        told.get("gen_ai.operation.name") == "execute_tool"
        or told.get("openinference.span.kind") == "TOOL"
        or told.get("traceloop.span.kind") == "tool"
        or told.get("langfuse.observation.type") == "tool"
    )


def agent_of(span: Span) -> str | None:
    """Return the name of the agent that a span names."""
    for key in ("gen_ai.agent.name", "agent.name"):
        if isinstance(name := span.attributes.get(key), str):
            return name
    return None


def facts_of(span: Span) -> dict[str, Any]:
    """Return the facts about a call as metadata entries, including unknown attributes."""
    groups: dict[str, dict[str, Any]] = {
        "entries": {}, "params": {}, "usage": {}, "attributes": {}, "told": {}
    }  # fmt: skip
    for key, value in span.attributes.items():
        group, _, name = place_of(key)
        groups[group].setdefault(name, value)
    facts = groups["entries"]
    for name, fact in (
        ("span_id", span.span_id),
        ("parent_span_id", span.parent_id),
        ("service", span.service),
        ("instrumentation", span.instrumentation),
        ("error", span.error),
        ("dropped_attributes", span.dropped),
        ("seconds", _seconds(span)),
        ("params", groups["params"]),
        ("usage", groups["usage"]),
        ("attributes", groups["attributes"]),
    ):
        if fact:
            facts[name] = fact
    return facts


def tool_run_of(span: Span) -> dict[str, Any]:
    """Return the facts about a tool run: call, name, arguments, result, error, seconds."""
    told = span.attributes
    found: dict[str, Any] = {}
    for name, keys in _TOOL.items():
        for key in keys:
            if (value := told.get(key)) is not None:
                found[name] = value
                break
    found.setdefault("name", span.name)
    if span.error:
        found["error"] = span.error
    if seconds := _seconds(span):
        found["seconds"] = seconds
    return found


def scores_of(span: Span) -> Iterator[Score]:
    """Yield the results of evaluations, recorded on the span itself or in its events."""
    told = span.attributes
    if "gen_ai.evaluation.name" in told or "gen_ai.evaluation.score.value" in told:
        # The span of an evaluation is a child of the span that it evaluates.
        above = span.span_id if is_call(span) else span.parent_id or span.span_id
        yield Score(above, _response(told), _gen_ai_score(told))
    for event in span.events:
        if event.name in {"gen_ai.evaluation.result", "gen_ai.evaluation"}:
            said = event.attributes
            target = said.get("span_id")
            span_id = target if isinstance(target, str) else span.span_id
            yield Score(span_id, _response(said), _gen_ai_score(said))
    spread = "evaluations." in span.spread or "annotations." in span.spread
    if spread and not _SCORED.isdisjoint(
        _first_names(span, "evaluations.") | _first_names(span, "annotations.")
    ):
        for entry in openinference_scores(span):
            yield Score(span.span_id, None, entry)


def reward_of(entries: list[dict[str, Any]], wanted: str | None) -> float | None:
    """Return the score that is the reward: the one `wanted`, one named "reward", or the only one.

    None if there are several and none of them is named as the reward.
    """
    scores = [
        (entry.get("name"), float(score))
        for entry in entries
        if isinstance(score := entry.get("score"), int | float) and abs(score) < _HUGE
    ]
    named = [score for name, score in scores if name == (wanted or "reward")]
    if named:
        return named[-1]
    return scores[0][1] if len(scores) == 1 and wanted is None else None


def _first_names(span: Span, group: str) -> set[str]:
    """Return the attribute names in the first piece of a group."""
    first = span.spread[group].get(0) if group in span.spread else None
    return set(first.rows) if first is not None else set()


def _response(told: Attributes) -> str | None:
    value = told.get("gen_ai.response.id")
    return value if isinstance(value, str) else None


def _gen_ai_score(told: Attributes) -> dict[str, Any]:
    found = {name: told.get(f"gen_ai.evaluation.{key}") for name, key in _SCORE.items()}
    return {name: value for name, value in found.items() if value is not None}


def _seconds(span: Span) -> float:
    return (span.end - span.start) / 1e9 if span.end > span.start > 0 else 0


_HUGE = 1e300
"""A score must be below this bound, which also rules out NaN."""
_CALLS = frozenset({"chat", "generate_content", "text_completion", "completion"})
_SCORE = {
    "name": "name",
    "score": "score.value",
    "label": "score.label",
    "explanation": "explanation",
}
_SPOKEN = frozenset({"role"})
_SCORED = frozenset(
    f"{group}.{name}"
    for group in ("evaluation", "annotation")
    for name in _SCORE
    if name != "explanation"
)
_TELLING = frozenset(
    {
        "gen_ai.operation.name",
        "openinference.span.kind",
        "llm.request.type",
        "langfuse.observation.type",
        "traceloop.span.kind",
        "gen_ai.agent.name",
        "agent.name",
        "gen_ai.evaluation.name",
        "gen_ai.evaluation.score.value",
    }
)
"""Attributes by which a span is more than a link between other spans."""
_TOOL = {
    "tool_call_id": ("gen_ai.tool.call.id", "tool_call.id", "tool.id"),
    "name": ("gen_ai.tool.name", "tool.name", "traceloop.entity.name"),
    "arguments": (
        "gen_ai.tool.call.arguments",
        "tool_arguments",
        "traceloop.entity.input",
        "langfuse.observation.input",
        "input.value",
    ),
    "result": (
        "gen_ai.tool.call.result",
        "tool_response",
        "traceloop.entity.output",
        "langfuse.observation.output",
        "output.value",
    ),
}
FILLED = frozenset(
    {
        "state",
        "action",
        "reward",
        "episode_id",
        "step",
        "agent",
        "messages",
        "tools",
        "tool_calls",
        "timestamp",
        *(f"metadata.{name}" for name in ENTRIES.values()),
        "metadata.answer",
        "metadata.attributes",
        "metadata.dropped_attributes",
        "metadata.error",
        "metadata.evaluations",
        "metadata.instrumentation",
        "metadata.other_answers",
        "metadata.params",
        "metadata.parent_span_id",
        f"metadata.{REASONING}",
        "metadata.seconds",
        "metadata.service",
        "metadata.span_id",
        "metadata.tool_runs",
        "metadata.usage",
    }
)
"""The item fields that an import of traces can fill."""
