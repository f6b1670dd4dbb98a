"""Makes the fixtures of Langfuse's OpenAI wrapper: its spans, and the rows that it exports of them."""

from __future__ import annotations

import json

import calls
import server
from langfuse import Langfuse
from langfuse.openai import OpenAI

from otlp import SAMPLES, Spans

address = server.start()
spans = Spans()
langfuse = Langfuse(
    public_key="pk", secret_key="sk", base_url=address, tracer_provider=spans.provider
)
client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
for name, talk in (("chat", calls.chat), ("responses", calls.responses)):
    spans.run(name, talk, client)
    spans.run(f"{name} stream", talk, client, stream=True)
    spans.run(f"{name} fail", talk, client, fail=True)
spans.write("langfuse_openai.jsonl")


def row(span: dict, trace_names: dict[str, str]) -> dict:
    """Return what the export of observations has for a span."""
    told = {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}

    def of(name: str) -> object:
        text = told.get(f"langfuse.observation.{name}")
        try:
            return json.loads(text) if isinstance(text, str) else text
        except ValueError:
            return text

    return {
        "id": span["spanId"],
        "traceId": span["traceId"],
        "parentObservationId": span["parentSpanId"] or None,
        "type": str(told.get("langfuse.observation.type", "span")).upper(),
        "name": span["name"],
        "startTime": int(span["startTimeUnixNano"]) / 1e9,
        "endTime": int(span["endTimeUnixNano"]) / 1e9,
        "input": of("input"),
        "output": of("output"),
        "model": of("model.name"),
        "modelParameters": of("model.parameters"),
        "usageDetails": of("usage_details"),
        "level": of("level") or "DEFAULT",
        "statusMessage": of("status_message"),
    }


with (SAMPLES / "langfuse_openai.jsonl").open() as file:
    requests = [json.loads(line) for line in file]
held = [
    span
    for request in requests
    for part in request["resourceSpans"]
    for scope in part["scopeSpans"]
    for span in scope["spans"]
]
with (SAMPLES / "langfuse_observations.jsonl").open("w") as file:
    for span in held:
        print(json.dumps(row(span, {}), ensure_ascii=False), file=file)
