"""Converts rows of a tracing service's export to items, by way of spans and `Traces`.

Not here: the form of a service's rows (`langfuse.py`, `langsmith.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from orbiter.train.errors import DataError
from orbiter.train.json_files.source import Source, reason_of
from orbiter.train.tracing.span import Span, SpanEvent
from orbiter.train.tracing.times import time_of
from orbiter.train.tracing.traces import Counts, Traces
from orbiter.train.trajectory import TrajectoryItem


class Row(NamedTuple):
    """One object of a file and the spans in it."""

    line: int
    spans: Iterator[Span]


def items_from(
    source: Source, rows: Iterable[Row], *, reward: str | None, what: str
) -> Iterator[TrajectoryItem]:
    """Yield an item for each model call in the spans of the rows.

    Raises:
        DataError: a row is wrong (unless the source skips bad ones), or there are no calls.
    """
    traces = Traces(source.refuse, reward=reward)
    for row in rows:
        # The reader of a row raises in the middle, so `for` would end at its first bad span.
        while True:
            try:
                span = next(row.spans, None)
            except (DataError, RecursionError) as error:
                source.refuse(row.line, reason_of(error), error)
                break
            if span is None:
                break
            yield from traces.add(span)
    yield from traces.finish()
    _check(source, traces.counts, what)


def nanoseconds_of(text: object) -> int:
    """Convert an ISO time, or seconds or milliseconds since 1970, to nanoseconds; 0 if missing.

    Raises:
        DataError: it is not a time.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = text / 1e3 if text > _MILLISECONDS else text
        if not 0 <= seconds < _MILLISECONDS:
            raise DataError(f"expected a time, got {str(text)[:40]}")
        # By microseconds, because a float of seconds since 1970 holds no more.
        return round(seconds * 1e6) * 1000
    return 0 if text in (None, "") else max(0, round((time_of(text) or 0) * 1e6) * 1000)


def score_event(given: Mapping[str, Any], *, span_id: str | None = None) -> SpanEvent:
    """Return a score as an OpenTelemetry evaluation event."""
    value = given.get("value", given.get("score"))
    fields = {
        "gen_ai.evaluation.name": given.get("name"),
        "gen_ai.evaluation.score.value": value if isinstance(value, int | float) else None,
        "gen_ai.evaluation.score.label": given.get("stringValue", given.get("string_value"))
        or (value if isinstance(value, str) else None),
        "gen_ai.evaluation.explanation": given.get("comment"),
        "span_id": span_id,
    }
    attributes = {name: value for name, value in fields.items() if value is not None}
    return SpanEvent("gen_ai.evaluation.result", attributes)


def _check(source: Source, counts: Counts, what: str) -> None:
    if counts.calls == counts.without_messages:
        raise DataError(f"{source.path}:1: holds no {what} among its {counts.spans} rows")
    for note in counts.notes():
        source.note(note)


_MILLISECONDS = 1e11
"""A larger number is in milliseconds: in seconds it would be more than 3,000 years from now."""
