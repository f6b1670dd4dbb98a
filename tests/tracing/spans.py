"""Spans as OTLP has them in JSON, for the tests that need other ones than the samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orbiter.train.json_files.source import Skipped, Source
from orbiter.train.tracing import otel
from orbiter.train.trajectory import TrajectoryItem

SECOND = 10**9
TRACE = "0" * 31 + "1"


def value(given: object) -> dict[str, Any]:
    if isinstance(given, bool):
        return {"boolValue": given}
    if isinstance(given, int):
        return {"intValue": str(given)}
    if isinstance(given, float):
        return {"doubleValue": given}
    return {"stringValue": given}


def span(span_id: str, parent: str = "", start: int = 0, **told: Any) -> dict[str, Any]:  # noqa: ANN401
    """A span whose attributes are `told`, with `__` for the dots; `events`, `trace` and more."""
    events, trace = told.pop("events", []), told.pop("trace", TRACE)
    rest = told.pop("rest", {})
    attributes = {key.replace("__", "."): given for key, given in told.items()}
    return {
        "traceId": trace,
        "spanId": span_id,
        "parentSpanId": parent,
        "startTimeUnixNano": str(start * SECOND),
        "attributes": [{"key": key, "value": value(one)} for key, one in attributes.items()],
        "events": [
            {"name": name, "attributes": [{"key": k, "value": value(v)} for k, v in given.items()]}
            for name, given in events
        ],
        **rest,
    }


def call(
    span_id: str,
    parent: str = "",
    start: int = 0,
    *,
    said: str = "hello",
    **told: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """A call of a model in OpenTelemetry's own dialect."""
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": said}]}]
    prompt = told.pop("prompt", [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}])
    return span(
        span_id,
        parent,
        start,
        gen_ai__operation__name="chat",
        gen_ai__input__messages=json.dumps(prompt),
        gen_ai__output__messages=json.dumps(answer),
        **told,
    )


def request(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def read(
    path: Path, skipped: list[Skipped] | None = None, reward: str | None = None
) -> list[TrajectoryItem]:
    """Read a file; with a list for what is skipped, skip what is wrong."""
    missing = skipped is None
    source = Source(path, "raise" if missing else "skip", "error", [] if missing else skipped)  # type: ignore[arg-type]
    return list(otel.read(source, reward=reward))


def read_spans(
    folder: Path, *spans: dict[str, Any], reward: str | None = None
) -> list[TrajectoryItem]:
    path = folder / "spans.json"
    path.write_text(json.dumps(request(*spans)))
    return read(path, reward=reward)
