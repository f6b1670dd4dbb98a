"""Extracts everything but the messages from a span: model, parameters, scores and tool runs.

Not here: the messages (`dialects.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from orbiter.train.chat.message import REASONING
from orbiter.train.errors import DataError
from orbiter.train.json_files.records import decode_json
from orbiter.train.tracing.dialects import openinference_scores
from orbiter.train.tracing.span import ENTRIES, Attributes, Span, SpanEvent, place_of


class SpanScore(NamedTuple):
    """The result of an evaluation."""

    span_id: str
    """The span that was evaluated, or the one on which the result was recorded."""
    response_id: str | None
    """The id of the answer that was evaluated, if it is given."""
    entry: dict[str, Any]
    """Whichever of name, score, label and explanation are given."""


def is_relevant(span: Span) -> bool:
    """Return whether a span may be a call or a tool run, or name an agent or a score."""
    # Most spans of a trace are HTTP calls and the like; looking further at them is what costs time.
    return bool(span.events or span.spread) or not _RELEVANT.isdisjoint(span.attributes)


def unknown_form(span: Span) -> str | None:
    """Name the unsupported form of a span's model call; None if it seems to hold no call.

    Also called for a span of a known kind whose messages are missing.
    """
    for key, tool in _FOREIGN.items():
        if key in span.attributes:
            return f"{key} ({tool})"
    operation = span.attributes.get("gen_ai.operation.name")
    if isinstance(operation, str) and operation not in _CALLS | _NO_CALLS:
        return f"gen_ai.operation.name {operation!r}"
    return None


def is_call(span: Span) -> bool:
    """Return whether a span is one model call (and not one of an agent, a tool or an embedding)."""
    attributes = span.attributes
    operation = attributes.get("gen_ai.operation.name")
    # The convention's own attribute is decisive; the others are from tracers without it.
    if isinstance(operation, str):
        return operation in _CALLS
    return (
        attributes.get("openinference.span.kind") == "LLM"
        or str(attributes.get("llm.request.type")) in _CALLS
        or attributes.get("langfuse.observation.type") == "generation"
        # Some tracers mark nothing as a call, but a numbered message with a role belongs to one.
        or not _first_names(span, "gen_ai.prompt.").isdisjoint(_ROLE)
        or not _first_names(span, "gen_ai.completion.").isdisjoint(_ROLE)
    )


def is_tool_run(span: Span) -> bool:
    """Return whether a span is one tool run."""
    attributes = span.attributes
    return (
        attributes.get("gen_ai.operation.name") == "execute_tool"
        or attributes.get("openinference.span.kind") == "TOOL"
        or attributes.get("traceloop.span.kind") == "tool"
        or attributes.get("langfuse.observation.type") == "tool"
    )


def task_of(span: Span) -> str | None:
    """Return the task that a span names; it applies to the span and its descendants."""
    for key in _TASKS:
        value = span.attributes.get(key)
        # Numbers are ids too; true and "" name nothing.
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def agent_of(span: Span) -> str | None:
    """Return the name of the agent that a span names."""
    for key in ("gen_ai.agent.name", "agent.name"):
        if isinstance(name := span.attributes.get(key), str):
            return name
    return None


def facts_of(span: Span) -> dict[str, Any]:
    """Return the facts about a call as metadata entries, including unknown attributes."""
    groups: dict[str, dict[str, Any]] = {
        "entries": {}, "params": {}, "usage": {}, "attributes": {}, "in_fields": {}
    }  # fmt: skip
    for key, value in _with_details(span.attributes):
        group, _, name = place_of(key)
        # The first attribute wins where two dialects give the same fact.
        groups[group].setdefault(name, value)
    facts = groups["entries"]
    for name, fact in (
        ("span_id", span.span_id),
        ("parent_span_id", span.parent_id),
        ("service", span.service),
        ("instrumentation", span.instrumentation),
        # Stacks hold paths and values of the agent's process, and would bloat every item.
        ("error", span.error and _without_stack(span.error)),
        ("dropped_attributes", span.dropped),
        ("seconds", _seconds(span)),
        ("params", groups["params"]),
        ("usage", groups["usage"]),
        ("attributes", groups["attributes"]),
    ):
        if fact:
            facts[name] = fact
    return facts


def _with_details(attributes: Attributes) -> Iterator[tuple[str, Any]]:
    """Yield attributes; Langfuse's JSON objects are split into one attribute per field."""
    for key, value in attributes.items():
        prefix = _DETAILS.get(key)
        inner = _object_in(value) if prefix else None
        if inner is None:
            yield key, value
        else:
            yield from ((f"{prefix}{_USAGE_NAMES.get(name, name)}", inner[name]) for name in inner)


def _object_in(value: object) -> Mapping[str, Any] | None:
    """Return a JSON object, given as such or as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = decode_json(value)
        except DataError:
            return None
    return value if isinstance(value, Mapping) else None


def _without_stack(error: str) -> str:
    """Return an error without the stack that some tracers put after it."""
    return error.partition("Traceback (most recent call last)")[0].strip() or error


def tool_run_of(span: Span) -> dict[str, Any]:
    """Return the facts about a tool run: call, name, arguments, result, error, seconds."""
    attributes = span.attributes
    run: dict[str, Any] = {}
    for name, keys in _TOOL.items():
        for key in keys:
            # The keys of a field are in the order of trust: the convention's own first.
            if (value := attributes.get(key)) is not None:
                run[name] = value
                break
    run.setdefault("name", span.name)
    if span.error:
        run["error"] = span.error
    if seconds := _seconds(span):
        run["seconds"] = seconds
    return run


def scores_of(span: Span) -> Iterator[SpanScore]:
    """Yield the results of evaluations, recorded on the span itself or in its events."""
    attributes = span.attributes
    if "gen_ai.evaluation.name" in attributes or "gen_ai.evaluation.score.value" in attributes:
        # The span of an evaluation is a child of the span that it evaluates.
        above = span.span_id if is_call(span) else span.parent_id or span.span_id
        yield SpanScore(above, _response(attributes), _gen_ai_score(attributes))
    for event in span.events:
        if (score := score_in(event, span.span_id)) is not None:
            yield score
    spread = "evaluations." in span.spread or "annotations." in span.spread
    if spread and not _SCORED.isdisjoint(
        _first_names(span, "evaluations.") | _first_names(span, "annotations.")
    ):
        for entry in openinference_scores(span):
            yield SpanScore(span.span_id, None, entry)


def score_in(event: SpanEvent, span_id: str) -> SpanScore | None:
    """Return the result of an evaluation in an event of a span; None if it is another event."""
    if event.name not in {"gen_ai.evaluation.result", "gen_ai.evaluation"}:
        return None
    attributes = event.attributes
    target = attributes.get("span_id")
    # Our own importers of exports put the scored span here; see `rows.score_event`.
    span_id = target if isinstance(target, str) else span_id
    return SpanScore(span_id, _response(attributes), _gen_ai_score(attributes))


def reward_of(entries: list[dict[str, Any]], wanted: str | None) -> float | None:
    """Return the score that is the reward: the one `wanted`, one named "reward", or the only one.

    None if there are several and none of them is named as the reward.
    """
    scores = [
        (entry.get("name"), float(score))
        for entry in entries
        if isinstance(score := entry.get("score"), int | float) and abs(score) < _HUGE
    ]
    # The latest of several with that name: scores may be corrected later.
    named = [score for name, score in scores if name == (wanted or "reward")]
    if named:
        return named[-1]
    # A wanted score that is missing must not be replaced by another one.
    return scores[0][1] if len(scores) == 1 and wanted is None else None


def _first_names(span: Span, group: str) -> set[str]:
    """Return the attribute names in the first piece of a group."""
    # One message is enough to know the dialect, and cheaper than all of them.
    first = span.spread[group].get(0) if group in span.spread else None
    return set(first.rows) if first is not None else set()


def _response(attributes: Attributes) -> str | None:
    value = attributes.get("gen_ai.response.id")
    return value if isinstance(value, str) else None


def _gen_ai_score(attributes: Attributes) -> dict[str, Any]:
    entry = {name: attributes.get(f"gen_ai.evaluation.{key}") for name, key in _SCORE.items()}
    return {name: value for name, value in entry.items() if value is not None}


def _seconds(span: Span) -> float:
    return (span.end - span.start) / 1e9 if span.end > span.start > 0 else 0


_TASKS = (
    "task.id",
    "task_id",
    "gen_ai.task.id",
    "langfuse.trace.metadata.task_id",
    "langfuse.observation.metadata.task_id",
    "traceloop.association.properties.task_id",
    "langsmith.reference_example_id",
)
"""Attributes that name the task that a trace is an attempt at."""
_DETAILS = {
    "langfuse.observation.usage_details": "gen_ai.usage.",
    "langfuse.observation.model.parameters": "gen_ai.request.",
}
_USAGE_NAMES = {"input": "input_tokens", "output": "output_tokens"}
_HUGE = 1e300
"""A score must be below this bound, which also rules out NaN."""
_FOREIGN = {
    "ai.prompt.messages": "Vercel AI SDK",
    "ai.prompt": "Vercel AI SDK",
    "gcp.vertex.agent.llm_request": "Google ADK",
    "mlflow.spanInputs": "MLflow",
    "braintrust.input": "Braintrust",
    "lmnr.span.input": "Laminar",
    "llm.prompts": "OpenInference, text completion",
    "gen_ai.prompt": "prompt as one attribute",
    "gen_ai.completion": "completion as one attribute",
}
"""Attributes that hold a call's content in unsupported forms, each with the tool that writes it."""
_NO_CALLS = frozenset(
    {
        "embeddings",
        "retrieval",
        "create_agent",
        "invoke_agent",
        "invoke_workflow",
        "plan",
        "execute_tool",
        "create_memory",
        "search_memory",
        "update_memory",
        "delete_memory",
        "upsert_memory",
        "evaluate",
    }
)
"""Operations of spans that are not model calls."""
_CALLS = frozenset({"chat", "generate_content", "text_completion", "completion"})
_SCORE = {
    "name": "name",
    "score": "score.value",
    "label": "score.label",
    "explanation": "explanation",
}
_ROLE = frozenset({"role"})
_SCORED = frozenset(
    f"{group}.{name}"
    for group in ("evaluation", "annotation")
    for name in _SCORE
    if name != "explanation"
)
_RELEVANT = frozenset(
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
        *_TASKS,
        *_FOREIGN,
    }
)
"""A span with none of these attributes only links other spans, and is not examined further."""
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
        "task_id",
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
