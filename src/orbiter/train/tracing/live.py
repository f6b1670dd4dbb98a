"""An OpenTelemetry span processor that captures model calls while the agent runs.

    provider.add_span_processor(SpanCapture(dataset))

This module does not import OpenTelemetry; the tracer that makes the spans does. Not here: making
spans, which is the task of an instrumentation, and files of spans (`otel.py`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orbiter.train.errors import TrainError
from orbiter.train.tracing.span import Span, SpanEvent, sorted_attributes
from orbiter.train.tracing.traces import Counts, Traces
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
else:
    SpanProcessor = object

log = logging.getLogger(__name__)


class SpanCapture(SpanProcessor):
    """Captures every model call into a data set as soon as its trace has ended.

    An episode is a trace (`episode_id` is its id in hex), a step is a call. A score recorded within
    the trace is the reward; pass a later one to `dataset.assign_reward`. Errors in here are logged
    and counted in `failed`; they never break the agent.
    """

    def __init__(self, dataset: TrajectoryDataset, *, reward: str | None = None) -> None:
        """Capture into `dataset`.

        Args:
            dataset: Stores the items; calls without a score wait there for a reward.
            reward: The name of the evaluation that is the reward; by default the one named
                "reward", or the only one.
        """
        self.dataset = dataset
        self.failed = 0
        """The number of spans that could not be read and items that could not be captured."""
        self._traces = Traces(self._refuse, reward=reward)
        self._lock = threading.Lock()  # spans end in any thread

    @property
    def counts(self) -> Counts:
        """The numbers of spans and calls seen so far."""
        return self._traces.counts

    def on_start(self, span: object, parent_context: Context | None = None) -> None:
        """Do nothing: a call is captured when it ends."""

    def _on_ending(self, span: object) -> None:
        """Do nothing; current tracers require this method."""

    def on_end(self, span: ReadableSpan) -> None:
        """Add a span; if it is the root of its trace, capture the calls of the trace."""
        with self._lock:
            try:
                converted = span_of(span)
                self._capture(self._traces.add(converted))
                # A root, or the first span of this process in a distributed trace: no more will
                # come here.
                if converted.parent_id is None or _is_remote(span):
                    self._capture(self._traces.finish(converted.trace_id))
            except TrainError as error:
                self._refuse(0, str(error), error)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - nothing waits
        """Capture the calls of traces whose root span has not ended."""
        with self._lock:
            # Flushing is the last chance before the process ends.
            self._capture(self._traces.finish())
        return True

    def shutdown(self) -> None:
        """Capture the remaining calls, and log a warning if nothing was captured at all."""
        self.force_flush()
        counts = self.counts
        # Also true without any calls: an instrumentation is missing, or does not record content.
        if counts.calls == counts.without_messages:
            log.warning(
                "nothing was captured: of %d spans, %d were model calls, and %d of these had no "
                "messages",
                counts.spans,
                counts.calls,
                counts.without_messages,
            )
        if counts.unmatched:
            log.warning("%d scores or tool runs belonged to no call", counts.unmatched)

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
    """Convert a span of the OpenTelemetry SDK."""
    context, above = span.context, span.parent
    resource = span.resource.attributes if span.resource else {}
    service = resource.get("service.name")
    attributes = sorted_attributes(_attributes(span.attributes))
    failed = span.status.status_code.name == "ERROR"
    return Span(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        f"{above.span_id:016x}" if above is not None else None,
        span.name,
        span.start_time or 0,
        span.end_time or 0,
        attributes.single,
        [SpanEvent(event.name, _attributes(event.attributes)) for event in span.events],
        (span.status.description or "error") if failed else None,
        span.dropped_attributes,
        service if isinstance(service, str) else None,
        span.instrumentation_scope.name if span.instrumentation_scope else None,
        spread=attributes.spread,
    )


def _is_remote(span: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.is_remote


def _attributes(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        # The SDK stores sequences as tuples, and files have lists.
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (given or {}).items()
    }
