"""Makes the fixtures of Logfire's instrumentations and of pydantic-ai, also of both at once."""

from __future__ import annotations

import base64

import anthropic
import calls
import logfire
import openai
import server
from pydantic_ai import Agent, BinaryContent, ToolReturn
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from otlp import Spans

address = server.start()
client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
claude = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)


def configured() -> Spans:
    """Return what keeps the spans that Logfire makes from now on."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    logfire.configure(
        send_to_logfire=False,
        console=False,
        service_name="shop",
        scrubbing=False,
        additional_span_processors=[SimpleSpanProcessor(kept)],
    )
    spans = Spans(logfire.DEFAULT_LOGFIRE_INSTANCE.config.get_tracer_provider())
    spans.kept = kept
    return spans


spans = configured()
logfire.instrument_openai(client)
logfire.instrument_anthropic(claude)
for name, talk, sdk in (
    ("chat", calls.chat, client),
    ("responses", calls.responses, client),
    ("anthropic", calls.anthropic, claude),
):
    spans.run(name, talk, sdk)
    spans.run(f"{name} stream", talk, sdk, stream=True)
    spans.run(f"{name} fail", talk, sdk, fail=True)
spans.write("logfire.jsonl")


def weather(city: str) -> object:
    """Return the weather in a city."""
    if city == "Graz":
        return "sun"
    picture = BinaryContent(base64.b64decode(calls.PNG), media_type="image/png")
    return ToolReturn("rain", content=[picture])


openai_provider = OpenAIProvider(base_url=f"{address}/v1", api_key="none")
MODELS = {
    "chat": OpenAIChatModel("gpt-4o-mini", provider=openai_provider),
    "responses": OpenAIResponsesModel("gpt-4o-mini", provider=openai_provider),
    "anthropic": AnthropicModel(
        "claude-haiku-4-5", provider=AnthropicProvider(base_url=address, api_key="none")
    ),
}


def talk(model: str, *, fail: bool = False) -> None:
    """Let an agent of pydantic-ai answer the question."""
    agent = Agent(MODELS[model], instructions=calls.SYSTEM, tools=[weather], name="forecaster")
    agent.run_sync("Please fail" if fail else calls.QUESTION)


spans = configured()
logfire.instrument_pydantic_ai()
for name in MODELS:
    spans.run(name, talk, name)
spans.run("chat fail", talk, "chat", fail=True)
spans.write("pydantic_ai.jsonl")

# Two instrumentations see the same call: pydantic-ai's and that of the SDK below it.
spans = configured()
logfire.instrument_pydantic_ai()
logfire.instrument_openai()
logfire.instrument_anthropic()
for name in MODELS:
    spans.run(name, talk, name)
spans.write("pydantic_ai_and_logfire.jsonl")
