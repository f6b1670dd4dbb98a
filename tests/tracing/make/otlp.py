"""Writes the spans of an SDK's tracer as OTLP JSON, one request per trace, with fixed ids and times."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

SAMPLES = Path(__file__).parents[1] / "samples"


class Spans:
    """A tracer whose spans are kept."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.kept = InMemorySpanExporter()
        self.provider = provider or TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.kept))
        self.records: Any = None

    def logs(self) -> Any:
        """Return a logger whose records are written as well, as OTLP's resourceLogs."""
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import (
            InMemoryLogRecordExporter,
            SimpleLogRecordProcessor,
        )

        self.records = InMemoryLogRecordExporter()
        provider = LoggerProvider()
        provider.add_log_record_processor(SimpleLogRecordProcessor(self.records))
        return provider

    @contextmanager
    def agent(self, name: str, **attributes: Any) -> Iterator[None]:
        """Open a root span, so that what happens inside is one trace."""
        with self.provider.get_tracer("agent").start_as_current_span(name, attributes=attributes):
            yield

    def run(self, name: str, talk: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Run one conversation in one trace; an error of the API belongs to it."""
        with self.agent(name, **{"task.id": name}):
            try:
                talk(*arguments, **options)
            except Exception as error:  # the conversation that fails is meant to
                if not options.get("fail"):
                    raise
                print(f"{name}: {type(error).__name__}")

    def write(self, file: str) -> None:
        """Write the spans below `samples/`."""
        spans = self.kept.get_finished_spans()
        ids: dict[int, str] = {}
        for span in spans:
            for number in (span.context.trace_id, span.context.span_id):
                ids.setdefault(
                    number, f"{len(ids) + 1:032x}" if number >> 64 else f"{len(ids) + 1:016x}"
                )
        begin = min(span.start_time or 0 for span in spans)
        traces: dict[int, list[ReadableSpan]] = {}
        for span in spans:
            traces.setdefault(span.context.trace_id, []).append(span)
        SAMPLES.mkdir(exist_ok=True)
        with (SAMPLES / file).open("w") as out:
            for held in traces.values():
                scopes: dict[tuple[str, str], list[Any]] = {}
                for span in held:
                    scope = span.instrumentation_scope
                    key = (scope.name, scope.version or "") if scope else ("", "")
                    scopes.setdefault(key, []).append(_span(span, ids, begin))
                groups = [
                    {"scope": {"name": name, "version": version}, "spans": inner}
                    for (name, version), inner in scopes.items()
                ]
                resource = {
                    "attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]
                }
                request = {"resourceSpans": [{"resource": resource, "scopeSpans": groups}]}
                print(json.dumps(request, ensure_ascii=False), file=out)
            for record in self.records.get_finished_logs() if self.records else ():
                log = record.log_record
                made = {
                    "timeUnixNano": str(
                        1_772_359_200_000_000_000
                        + (log.timestamp or log.observed_timestamp or begin)
                        - begin
                    ),
                    "traceId": ids.get(log.trace_id, ""),
                    "spanId": ids.get(log.span_id, ""),
                    "eventName": log.event_name or "",
                    "attributes": _attributes(log.attributes),
                    **({"body": _value(log.body)} if log.body is not None else {}),
                }
                scope = {"name": record.instrumentation_scope.name}
                request = {
                    "resourceLogs": [{"scopeLogs": [{"scope": scope, "logRecords": [made]}]}]
                }
                print(json.dumps(request, ensure_ascii=False), file=out)
        print(f"{file}: {len(spans)} spans in {len(traces)} traces")


def _span(span: ReadableSpan, ids: dict[int, str], begin: int) -> dict[str, Any]:
    def time(at: int | None) -> str:
        return str(1_772_359_200_000_000_000 + (at or begin) - begin)

    made: dict[str, Any] = {
        "traceId": ids[span.context.trace_id],
        "spanId": ids[span.context.span_id],
        "parentSpanId": ids.get(span.parent.span_id, "") if span.parent else "",
        "name": span.name,
        "startTimeUnixNano": time(span.start_time),
        "endTimeUnixNano": time(span.end_time),
        "attributes": _attributes(span.attributes),
        "events": [
            {"name": event.name, "timeUnixNano": time(event.timestamp), "attributes": _attributes(
                {k: v for k, v in (event.attributes or {}).items() if k != "exception.stacktrace"}
            )}
            for event in span.events
        ],
        "status": {
            "code": span.status.status_code.value,
            "message": (span.status.description or "").partition("Traceback")[0].strip(),
        },
    }  # fmt: skip
    return made


def _attributes(given: Any) -> list[dict[str, Any]]:
    held = given or {}
    dropped = {"logfire.json_schema", "exception.stacktrace"}
    if held.get("openinference.span.kind") == "CHAIN":
        dropped |= {"input.value", "output.value"}  # the same chats once more
    return [{"key": key, "value": _value(held[key])} for key in held if key not in dropped]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", value)}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(inner) for inner in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": _attributes(value)}}
    return {"stringValue": str(value)}
