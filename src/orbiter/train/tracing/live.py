"""OpenTelemetry, live: a span processor that captures the calls of a model as they end.

    provider.add_span_processor(SpanCapture(dataset))

Needs nothing of OpenTelemetry itself: the tracer that makes the spans brings it. Left out: making
spans (that is the instrumentation's), and files of them (`otel.py`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orbiter.train.errors import TrainError
from orbiter.train.tracing.span import Event, Span, sheet_of
from orbiter.train.tracing.traces import Counts, Traces
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
else:
    SpanProcessor = object

log = logging.getLogger(__name__)


class SpanCapture(SpanProcessor):
    """Captures every call of a model into a data set, once the trace that it is in has ended.

    An episode is a trace (`episode_id` is its id in hex), a step is a call. A score that was said
    within the trace is the reward; one that comes later is for `dataset.assign_reward`. Whatever
    goes wrong here is logged and counted in `failed`: it never breaks the agent that is watched.
    """

    def __init__(self, dataset: TrajectoryDataset, *, reward: str | None = None) -> None:
        """Capture into `dataset`.

        Args:
            dataset: Takes the items; calls without a score wait there for a reward.
            reward: Name of the evaluation that is the reward; unless given, the one named
                "reward", or the only one.
        """
        self.dataset = dataset
        self.failed = 0
        """Spans that could not be understood, and items that the data set did not take."""
        self._traces = Traces(self._refuse, reward=reward)
        self._lock = threading.Lock()  # spans end in any thread

    @property
    def counts(self) -> Counts:
        """What came by."""
        return self._traces.counts

    def on_start(self, span: object, parent_context: Context | None = None) -> None:
        """Do nothing: a call is told when it is over."""

    def _on_ending(self, span: object) -> None:
        """Do nothing; the tracer of today asks for it, under this name."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take in a span; when it is the first of its trace, capture what the trace held."""
        with self._lock:
            try:
                told = span_of(span)
                self._capture(self._traces.add(told))
                if told.parent_id is None or _is_remote(span):
                    self._capture(self._traces.finish(told.trace_id))
            except TrainError as error:
                self._refuse(0, str(error), error)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - nothing waits
        """Capture what is still held: traces whose first span has not ended."""
        with self._lock:
            self._capture(self._traces.finish())
        return True

    def shutdown(self) -> None:
        """Capture what is still held, and say loudly if nothing was captured at all."""
        self.force_flush()
        counts = self.counts
        if counts.calls == counts.silent:
            log.warning(
                "nothing was captured: of %d spans %d were calls of a model, and %d of these had "
                "no messages",
                counts.spans,
                counts.calls,
                counts.silent,
            )
        if counts.homeless:
            log.warning("%d scores or runs of tools belonged to no call", counts.homeless)

    def _capture(self, items: Iterable[TrajectoryItem]) -> None:
        for item in items:
            try:
                self.dataset.capture(item)
            except TrainError as error:
                self._refuse(0, str(error), error)

    def _refuse(self, _line: int, reason: str, cause: Exception | None = None) -> None:
        self.failed += 1
        log.error("not captured: %s", reason, exc_info=cause)


def span_of(span: ReadableSpan) -> Span:
    """Return a span of the SDK as both importers have it."""
    context, above = span.context, span.parent
    resource = span.resource.attributes if span.resource else {}
    service = resource.get("service.name")
    sheet = sheet_of(_attributes(span.attributes))
    failed = span.status.status_code.name == "ERROR"
    return Span(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        f"{above.span_id:016x}" if above is not None else None,
        span.name,
        span.start_time or 0,
        span.end_time or 0,
        sheet.single,
        [Event(event.name, _attributes(event.attributes)) for event in span.events],
        (span.status.description or "error") if failed else None,
        span.dropped_attributes,
        service if isinstance(service, str) else None,
        span.instrumentation_scope.name if span.instrumentation_scope else None,
        spread=sheet.spread,
    )


def _is_remote(span: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.is_remote


def _attributes(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (given or {}).items()
    }
