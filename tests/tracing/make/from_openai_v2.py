"""Makes the fixture of OpenTelemetry's own instrumentation of the OpenAI SDK."""

from __future__ import annotations

import os

os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = os.environ.get("CONTENT", "true")
if "STABILITY" in os.environ:
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = os.environ["STABILITY"]

import calls
import openai
import server
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

from otlp import Spans

spans = Spans()
OpenAIInstrumentor().instrument(tracer_provider=spans.provider, logger_provider=spans.logs())
address = server.start()
client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
for name, talk in (("chat", calls.chat), ("responses", calls.responses)):
    spans.run(name, talk, client)
    spans.run(f"{name} stream", talk, client, stream=True)
    spans.run(f"{name} fail", talk, client, fail=True)
spans.write(os.environ.get("OUT", "openai_v2.jsonl"))
