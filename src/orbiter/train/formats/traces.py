"""The trace formats: files of OpenTelemetry, Langfuse and LangSmith, read by `tracing/`."""

from __future__ import annotations

from orbiter.train.formats.format import Format
from orbiter.train.tracing import langfuse, langsmith, otel
from orbiter.train.tracing.facts import FILLED

OTEL = Format(
    name="otel",
    about="OpenTelemetry GenAI spans in OTLP JSON (semantic conventions 1.28 to 1.42); also those "
    "of OpenLLMetry, OpenInference and pydantic-ai",
    suffixes=otel.SUFFIXES,
    survives=FILLED,
    detect=otel.detect,
    read=otel.read,
)

LANGFUSE = Format(
    name="langfuse",
    about="Langfuse's exports of observations: API v2 and downloads (5), blob storage",
    suffixes=(".json", ".jsonl"),
    survives=FILLED - langfuse.NOT_FILLED,
    detect=langfuse.detect,
    read=langfuse.read,
)

LANGSMITH = Format(
    name="langsmith",
    about="LangSmith's exports of runs (client 0.15; bulk export)",
    suffixes=(".json", ".jsonl"),
    survives=FILLED - langsmith.NOT_FILLED,
    detect=langsmith.detect,
    read=langsmith.read,
)
