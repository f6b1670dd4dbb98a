"""Imports LangSmith exports: runs, one per line or in an array, from its client or bulk export.

A run of type `llm` is an item and its trace the episode; the means in `feedback_stats` are scores.
Not supported: runs whose inputs or outputs LangSmith stores in a bucket (`inputs_s3_urls`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orbiter.train.chat.parts import as_text
from orbiter.train.errors import DataError
from orbiter.train.json_files.records import decode_json
from orbiter.train.json_files.source import Source
from orbiter.train.json_files.walk import objects_in
from orbiter.train.tracing.rows import Row, items_from, nanoseconds_of, score_event
from orbiter.train.tracing.span import Span, SpanEvent
from orbiter.train.trajectory import TrajectoryItem


def read(source: Source, *, reward: str | None = None) -> Iterator[TrajectoryItem]:
    """Yield an item for each run of a language model.

    Args:
        source: The file.
        reward: The key of the feedback that is the reward; by default the one named "reward", or
            the only one.

    Raises:
        DataError: a run is wrong (unless the source skips bad ones), or no run is of a model.
    """
    rows = (Row(line, _spans(value, line)) for line, value in objects_in(source))
    yield from items_from(source, rows, reward=reward, what="run of type llm with messages")


def detect(head: bytes, path: Path) -> float:  # noqa: ARG001 - the content says it
    """Return the confidence, from 0 to 1, that a file with this head is a LangSmith export."""
    return 0.95 if b'"run_type"' in head and b'"resourceSpans"' not in head else 0.0


def _spans(value: Mapping[str, Any], line: int) -> Iterator[Span]:
    """Yield the spans in one object of a file: a run with its child runs, or a page of runs."""
    if isinstance(page := value.get("runs"), list):
        for run in page:
            if not isinstance(run, Mapping):
                raise DataError("field 'runs': expected a list of runs")
            yield from _spans(run, line)
        return
    yield _span(value, line)
    below = value.get("child_runs")
    for run in below if isinstance(below, list) else ():
        if isinstance(run, Mapping):
            # Nested runs may leave out the trace that they are in.
            yield from _spans({"trace_id": value.get("trace_id"), **run}, line)


def _span(run: Mapping[str, Any], line: int) -> Span:
    kind = run.get("run_type")
    if not isinstance(kind, str) or run.get("id") is None:
        raise DataError("not a run: it has no run_type or no id")
    error = run.get("error")
    return Span(
        str(run.get("trace_id") or ""),
        str(run["id"]),
        str(run.get("parent_run_id") or "") or None,
        str(run.get("name") or ""),
        nanoseconds_of(run.get("start_time")),
        nanoseconds_of(run.get("end_time")),
        _attributes(run, kind),
        list(_feedback(_object(run, "feedback_stats"))),
        as_text(error) if error else None,
        line=line,
    )


def _attributes(run: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the data of a run under the attribute names of spans."""
    extra = _object(run, "extra")
    parameters, metadata = (
        dict(_object(extra, "invocation_params")),
        dict(_object(extra, "metadata")),
    )
    inputs, outputs = _object(run, "inputs"), _object(run, "outputs")
    tools = parameters.pop("tools", None) or inputs.get("tools")
    answer = _answer_in(outputs) if kind == "llm" else {}
    usage, about_answer = _object(answer, "usage_metadata"), _object(answer, "response_metadata")
    attributes: dict[str, Any] = {
        # The names of OpenInference, whose values are whole inputs and outputs like these.
        "openinference.span.kind": {"llm": "LLM", "tool": "TOOL"}.get(kind, kind),
        # The tools are among the parameters, and our reader looks for them beside the messages.
        "input.value": {**inputs, **({"tools": tools} if tools else {})} or None,
        "output.value": outputs or None,
        "tool_call.id": _tool_call_id(outputs) if kind == "tool" else None,
        "tool.name": run.get("name") if kind == "tool" else None,
        "gen_ai.response.model": metadata.pop("ls_model_name", None) or parameters.get("model"),
        "gen_ai.provider.name": metadata.pop("ls_provider", None),
        "session.id": next((metadata.pop(key) for key in _THREADS if metadata.get(key)), None),
        "gen_ai.agent.name": metadata.get("lc_agent_name"),
        "task.id": metadata.get("task_id"),
        "gen_ai.response.id": about_answer.get("id"),
        "gen_ai.response.finish_reasons": about_answer.get(
            "finish_reason", about_answer.get("stop_reason")
        ),
        "gen_ai.usage.input_tokens": run.get("prompt_tokens") or usage.get("input_tokens"),
        "gen_ai.usage.output_tokens": run.get("completion_tokens") or usage.get("output_tokens"),
        "gen_ai.usage.cache_read.input_tokens": (
            _object(usage, "input_token_details").get("cache_read") or None
        ),
        "langsmith.total_cost": run.get("total_cost"),
        "langsmith.session_id": run.get("session_id"),
        "langsmith.reference_example_id": run.get("reference_example_id"),
        "langsmith.tags": run.get("tags") or None,
        "langsmith.metadata": metadata or None,
        **{f"gen_ai.request.{name}": value for name, value in parameters.items()},
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _answer_in(outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of LangChain's message for a model's answer; {} without a message."""
    value: object = outputs.get("generations")
    # LangChain nests generations by prompt and by choice: the first of each.
    while isinstance(value, list) and value:
        value = value[0]
    message = value.get("message") if isinstance(value, Mapping) else None
    inner = message.get("kwargs", message.get("data")) if isinstance(message, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _tool_call_id(outputs: Mapping[str, Any]) -> str | None:
    """Return the id of the call that a tool run answers, read from LangChain's message."""
    message = outputs.get("output")
    fields = message if isinstance(message, Mapping) else {}
    inner = fields.get("kwargs", fields.get("data", fields))
    call_id = inner.get("tool_call_id") if isinstance(inner, Mapping) else None
    return call_id if isinstance(call_id, str) else None


def _feedback(stats: Mapping[str, Any]) -> Iterator[SpanEvent]:
    for name, given in stats.items():
        # Several people's feedback is averaged by LangSmith itself.
        value = given.get("avg") if isinstance(given, Mapping) else given
        if isinstance(value, int | float):
            yield score_event({"name": name, "value": value})


def _object(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object, which is JSON text in bulk exports."""
    value = holder.get(name)
    if isinstance(value, str) and value.strip():
        value = decode_json(value)
    if value is not None and not isinstance(value, Mapping):
        # A run may take and return any value, such as a text or a list.
        return {"input" if name == "inputs" else "output": value}
    return value or {}


_THREADS = ("thread_id", "session_id", "conversation_id")

NOT_FILLED = {
    "metadata.agent_id",
    "metadata.cached_tokens",
    "metadata.dropped_attributes",
    "metadata.error_type",
    "metadata.instrumentation",
    "metadata.invocation_parameters",
    "metadata.reasoning_tokens",
    "metadata.response_id",
    "metadata.service",
    "metadata.usage",
    "metadata.user_id",
    "metadata.workflow",
}
"""Item fields that spans can fill but runs have no data for."""
