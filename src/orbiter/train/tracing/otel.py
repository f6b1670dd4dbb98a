"""Imports OpenTelemetry GenAI spans from a file of OTLP JSON.

An episode is a trace; its steps are the model calls in the order of their start. `traces.py`
collects the spans of a trace within a window. The score of an evaluation (`gen_ai.evaluation`) is
the reward of the call that it evaluates, or of the last call below the span that it evaluates.
Not supported: writing spans.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from orbiter.train.errors import DataError
from orbiter.train.json_files.source import BOM, Source
from orbiter.train.tracing.otlp import Found, Status, nanoseconds, read_spans
from orbiter.train.tracing.recorded import decoded_item
from orbiter.train.tracing.span import AttributeReader, Event, Span, attributes_of
from orbiter.train.tracing.traces import Counts, Traces
from orbiter.train.trajectory import TrajectoryItem

log = logging.getLogger(__name__)


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
    for found in read_spans(source):
        try:
            span = span_of(found, known)
        except DataError as error:
            source.refuse(found.line, f"span {found.span.span_id!r}: {error}", error)
        else:
            yield from traces.add(span)
    yield from traces.finish()
    _check(source, traces.counts)


def detect(head: bytes, path: Path) -> float:
    """Return the confidence, from 0 to 1, that a file with this head is OTLP JSON."""
    start = head.removeprefix(BOM).lstrip(b" \t\r\n[")
    if not start.startswith(b"{") or b'"resourceSpans"' not in head:
        return 0.0
    return 1.0 if _OPENS.match(start) else 0.5 if path.suffix in SUFFIXES else 0.3


def span_of(found: Found, known: AttributeReader) -> Span:
    """Convert a span of a file.

    Args:
        found: The span.
        known: The cache of attributes from earlier spans.

    Raises:
        DataError: an attribute or a number is malformed.
    """
    span, origin, line = found
    sheet = known.read(span.attributes, span.trace_id, span.name)
    return Span(
        span.trace_id,
        span.span_id,
        span.parent_span_id or None,
        span.name,
        nanoseconds(span.start_time_unix_nano),
        nanoseconds(span.end_time_unix_nano),
        sheet.single,
        [Event(event.name, attributes_of(event.attributes)) for event in span.events or ()],
        _error(span.status),
        span.dropped_attributes_count or 0,
        origin.service,
        origin.instrumentation,
        line,
        sheet.spread,
        len(memoryview(span.attributes)),
    )


def _error(status: Status | None) -> str | None:
    if status is None or status.code not in {2, "2", "STATUS_CODE_ERROR"}:
        return None
    return status.message or "error"


def _check(source: Source, counts: Counts) -> None:
    """Report calls without messages; raise if there are no usable calls at all."""
    if counts.calls == 0:
        raise DataError(
            f"{source.path}:1: holds no call of a model: none of its {counts.spans} spans has "
            "gen_ai.operation.name, gen_ai.prompt.0.role, openinference.span.kind or their like"
        )
    if counts.silent == counts.calls:
        raise DataError(
            f"{source.path}:1: its {counts.calls} calls of a model have no messages: the tracer "
            "did not record content, which most do only when asked to "
            "(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true)"
        )
    if counts.silent:
        log.warning("%s: %d calls have no messages and are left out", source.path, counts.silent)
    if counts.homeless:
        log.warning(
            "%s: %d scores or tool runs belong to no call and are left out",
            source.path,
            counts.homeless,
        )


SUFFIXES = (".json", ".jsonl")
_OPENS = re.compile(rb'\{\s*"resourceSpans"\s*:')
