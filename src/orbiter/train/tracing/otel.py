"""Imports OpenTelemetry GenAI spans from a file of OTLP JSON.

An episode is a trace; its steps are the model calls in the order of their start. `traces.py`
collects the spans of a trace within a window. The score of an evaluation (`gen_ai.evaluation`) is
the reward of the call that it evaluates, or of all calls below the span that it evaluates. Log
records are events of the spans that they name. Not supported: writing spans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from orbiter.train.errors import DataError
from orbiter.train.json_files.source import BOM, Source
from orbiter.train.tracing.otlp import FoundLog, FoundSpan, Status, nanoseconds, plain, read_spans
from orbiter.train.tracing.recorded import decoded_item
from orbiter.train.tracing.span import AttributeReader, Span, SpanEvent, attributes_of
from orbiter.train.tracing.traces import Counts, Traces
from orbiter.train.trajectory import TrajectoryItem


def read(source: Source, *, reward: str | None = None) -> Iterator[TrajectoryItem]:
    """Yield an item for each model call.

    Args:
        source: The file.
        reward: The name of the evaluation that is the reward; by default the one named "reward",
            or the only one.

    Raises:
        DataError: a span is wrong (unless the source skips bad ones), or there are no calls.
    """
    traces = Traces(source.refuse, make=decoded_item, reward=reward)
    known = AttributeReader()
    for record in read_spans(source):
        try:
            if isinstance(record, FoundLog):
                yield from traces.add_log(*_event_of(record))
                continue
            span = span_of(record, known)
        except DataError as error:
            wire = record.log if isinstance(record, FoundLog) else record.span
            source.refuse(record.line, f"span {wire.span_id!r}: {error}", error)
        else:
            yield from traces.add(span)
    yield from traces.finish()
    _check(source, traces.counts)


def _event_of(record: FoundLog) -> tuple[str, str, SpanEvent]:
    """Return the event in a log record, with the trace and the span that it belongs to."""
    log = record.log
    attributes = attributes_of(log.attributes)
    # Some writers put the name into an attribute instead.
    name = log.event_name or str(attributes.pop("event.name", ""))
    body = plain(log.body)
    # A body's fields are the event's attributes; a plain body is its content.
    if isinstance(body, dict):
        attributes = {**attributes, **body}
    elif body is not None:
        attributes.setdefault("content", body)
    return log.trace_id, log.span_id, SpanEvent(name, attributes)


def detect(head: bytes, path: Path) -> float:
    """Return the confidence, from 0 to 1, that a file with this head is OTLP JSON."""
    # Requests may be in an array.
    start = head.removeprefix(BOM).lstrip(b" \t\r\n[")
    if not start.startswith(b"{") or _HOLDS.search(head) is None:
        return 0.0
    return 1.0 if _OPENS.match(start) else 0.5 if path.suffix in SUFFIXES else 0.3


def span_of(record: FoundSpan, known: AttributeReader) -> Span:
    """Convert a span of a file.

    Args:
        record: The span, as read from the file.
        known: The cache of attributes from earlier spans.

    Raises:
        DataError: an attribute or a number is malformed.
    """
    span, origin, line = record
    attributes = known.read(span.attributes, span.trace_id, span.name)
    return Span(
        span.trace_id,
        span.span_id,
        span.parent_span_id or None,
        span.name,
        nanoseconds(span.start_time_unix_nano),
        nanoseconds(span.end_time_unix_nano),
        attributes.single,
        [SpanEvent(event.name, attributes_of(event.attributes)) for event in span.events or ()],
        _error(span.status),
        span.dropped_attributes_count or 0,
        origin.service,
        origin.instrumentation,
        line,
        attributes.spread,
        len(memoryview(span.attributes)),
    )


def _error(status: Status | None) -> str | None:
    # OTLP JSON writes enums as numbers or as names.
    if status is None or status.code not in {2, "2", "STATUS_CODE_ERROR"}:
        return None
    return status.message or "error"


def _check(source: Source, counts: Counts) -> None:
    """Report calls without messages; raise if there are no usable calls at all."""
    # Spans and logs are often written to separate files.
    if counts.spans == 0 and counts.logs:
        raise DataError(
            f"{source.path}:1: holds {counts.logs} log records and no span: the calls are in the "
            "file of spans; write both into one file"
        )
    forms = f"; unsupported forms: {', '.join(sorted(counts.unknown))}"
    unknown = forms if counts.unknown else ""
    if counts.calls == 0:
        raise DataError(
            f"{source.path}:1: holds no call of a model: none of its {counts.spans} spans has "
            "gen_ai.operation.name, gen_ai.prompt.0.role, openinference.span.kind or their like"
            f"{unknown}"
        )
    if counts.without_messages == counts.calls:
        raise DataError(
            f"{source.path}:1: its {counts.calls} calls of a model have no messages: the tracer "
            "did not record content, which most do only when asked to "
            f"(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true){unknown}"
        )
    for note in counts.notes():
        source.note(note)


SUFFIXES = (".json", ".jsonl")
_OPENS = re.compile(rb'\{\s*"resource(?:Spans|Logs)"\s*:')
_HOLDS = re.compile(rb'"resource(?:Spans|Logs)"')
