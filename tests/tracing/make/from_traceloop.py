"""Makes the fixtures of OpenLLMetry's (Traceloop's) instrumentations of OpenAI and Anthropic."""

from __future__ import annotations

import anthropic
import calls
import openai
import server
from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor
from opentelemetry.instrumentation.openai import OpenAIInstrumentor

from otlp import Spans

spans = Spans()
OpenAIInstrumentor(enrich_assistant=True).instrument(tracer_provider=spans.provider)
AnthropicInstrumentor().instrument(tracer_provider=spans.provider)
address = server.start()
client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
claude = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
for name, talk, sdk in (
    ("chat", calls.chat, client),
    ("responses", calls.responses, client),
    ("anthropic", calls.anthropic, claude),
):
    spans.run(name, talk, sdk)
    spans.run(f"{name} stream", talk, sdk, stream=True)
    spans.run(f"{name} fail", talk, sdk, fail=True)
spans.write("openllmetry.jsonl")
