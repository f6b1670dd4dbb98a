"""Imports Langfuse exports: observations from its web interface, API or blob storage.

    rows           one observation per line, or an array of them; names in camel or snake case
    an API page    {"data": [observations], "meta": ...}
    one trace      {"id": ..., "observations": [...], "scores": [...]}: a download

A generation is an item and its trace the episode. Scores are rewards if they are in the same file
as their observation or trace. Not supported: the separate files of scores and of traces that blob
storage writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orbiter.train.errors import DataError
from orbiter.train.json_files.records import decode_json, head_objects
from orbiter.train.json_files.source import Source
from orbiter.train.json_files.walk import objects_in
from orbiter.train.tracing.rows import Row, items_from, nanoseconds_of, score_event
from orbiter.train.tracing.span import Span
from orbiter.train.trajectory import TrajectoryItem


def read(source: Source, *, reward: str | None = None) -> Iterator[TrajectoryItem]:
    """Yield an item for each generation.

    Args:
        source: The file.
        reward: The name of the score that is the reward; by default the one named "reward", or the
            only one.

    Raises:
        DataError: an observation is wrong (unless the source skips bad ones), or there are no
            generations.
    """
    rows = (Row(line, _spans(value, line)) for line, value in objects_in(source))
    yield from items_from(source, rows, reward=reward, what="generation with input or output")


def detect(head: bytes, path: Path) -> float:  # noqa: ARG001 - the content says it
    """Return the confidence, from 0 to 1, that a file with this head is a Langfuse export."""
    # Exports are written with and without blanks after the colons.
    text = head.replace(b" ", b"")
    named = any(key in text for key in (b'"traceId":', b'"trace_id":'))
    typed = any(b'"type":"%b"' % kind in text for kind in _KINDS)
    usage = any(
        key in text for key in (b'"usageDetails":', b'"usage_details":', b'"observations":')
    )
    if b'"resourceSpans"' in text or not (named and typed):
        return 0.0
    # A head cut inside the first object has fewer marks.
    return 0.9 if usage or head_objects(head) else 0.7


def _spans(value: Mapping[str, Any], line: int) -> Iterator[Span]:
    """Yield the spans in one object of a file: a row, a page or a trace."""
    inner = value.get("trace")
    trace = inner if isinstance(inner, Mapping) else value
    rows = next(
        (
            candidate
            for candidate in (
                value.get("data"),
                value.get("observations"),
                trace.get("observations"),
            )
            if isinstance(candidate, list)
        ),
        None,
    )
    if rows is None:
        yield _span(value, line)
        return
    for row in rows:
        if not isinstance(row, Mapping):
            raise DataError("expected a list of observations")
        # A row's own trace wins; within a download it may be left out.
        yield _span({"traceId": trace.get("id"), **row}, line)
    scores = value.get("scores", trace.get("scores"))
    for score in scores if isinstance(scores, list) else ():
        if isinstance(score, Mapping):
            trace_id = _get(score, "traceId") or trace.get("id")
            target = _get(score, "observationId")
            # A score becomes a span with one evaluation event, because `Traces` takes nothing else.
            yield Span(
                str(trace_id or ""), f"score of {target}", str(target or "") or None, "score", 0, 0,
                {}, [score_event(score, span_id=str(target) if target else None)], line=line,
            )  # fmt: skip


def _span(row: Mapping[str, Any], line: int) -> Span:
    kind = str(row.get("type") or "").lower()
    if not kind or _get(row, "id") is None:
        raise DataError("not an observation: it has no type or no id")
    scores = row.get("scores")
    events = [score_event(score) for score in _scores(scores)]
    # Warnings are levels too, but the call succeeded.
    failed = str(row.get("level") or "").upper() == "ERROR"
    return Span(
        str(_get(row, "traceId") or ""),
        str(row["id"]),
        str(_get(row, "parentObservationId") or "") or None,
        str(row.get("name") or ""),
        nanoseconds_of(_get(row, "startTime")),
        nanoseconds_of(_get(row, "endTime")),
        _attributes(row, kind),
        events,
        str(_get(row, "statusMessage") or "error") if failed else None,
        line=line,
    )


def _attributes(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the data of an observation under the attribute names of Langfuse's SDK."""
    attributes: dict[str, Any] = {"langfuse.observation.type": kind}
    for name, attribute in _NAMES.items():
        # Exports have a column for every field, mostly empty.
        if (value := _get(row, name)) not in (None, "", {}, []):
            attributes[attribute] = value
    for name, prefix in (("modelParameters", "gen_ai.request."), ("usageDetails", _USAGE)):
        value = _as_object(_get(row, name))
        attributes |= {
            f"{prefix}{_USAGE_NAMES.get(key, key)}": inner for key, inner in value.items()
        }
    metadata = _as_object(_get(row, "metadata"))
    if isinstance(task := metadata.get("task_id", metadata.get("task.id")), str):
        attributes["task.id"] = task
    if kind == "agent" and row.get("name"):
        attributes["gen_ai.agent.name"] = row["name"]
    return attributes


def _get(row: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any JSON
    """Return a field by its name in camel case, or in snake case."""
    if name in row:
        return row[name]
    return row.get("".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name))


def _as_object(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = decode_json(value)
        except DataError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _scores(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield scores, given as a list of them or by name."""
    if isinstance(value, Mapping):
        yield from ({"name": name, "value": score} for name, score in value.items())
    elif isinstance(value, list):
        yield from (score for score in value if isinstance(score, Mapping))


_KINDS = (b"GENERATION", b"SPAN", b"EVENT", b"AGENT", b"TOOL", b"generation", b"span", b"agent")
_USAGE = "gen_ai.usage."
_USAGE_NAMES = {"input": "input_tokens", "output": "output_tokens"}
_NAMES = {
    "input": "langfuse.observation.input",
    "output": "langfuse.observation.output",
    "model": "gen_ai.response.model",
    "providedModelName": "gen_ai.response.model",
    "sessionId": "session.id",
    "userId": "user.id",
    "metadata": "langfuse.metadata",
    "costDetails": "langfuse.cost_details",
    "promptName": "langfuse.prompt_name",
    "promptVersion": "langfuse.prompt_version",
    "version": "langfuse.version",
    "environment": "langfuse.environment",
    "traceName": "langfuse.trace_name",
    "timeToFirstToken": "gen_ai.response.time_to_first_chunk",
    "tags": "langfuse.tags",
}

NOT_FILLED = {
    "metadata.agent_id",
    "metadata.dropped_attributes",
    "metadata.error_type",
    "metadata.instrumentation",
    "metadata.invocation_parameters",
    "metadata.provider",
    "metadata.response_id",
    "metadata.service",
    "metadata.workflow",
}
"""Item fields that spans can fill but observations have no data for."""
