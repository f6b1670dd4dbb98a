"""Makes the fixtures of LangChain: OpenInference's spans of it, and the runs LangSmith receives."""

from __future__ import annotations

import json
import os
import time

import server

address = server.start()
os.environ |= {
    "LANGSMITH_TRACING": "true",
    "LANGSMITH_ENDPOINT": address,
    "LANGSMITH_API_KEY": "none",
    "OPENAI_API_KEY": "none",
    "ANTHROPIC_API_KEY": "none",
}

import calls  # noqa: E402 - the SDKs read the environment when they are imported
from langchain_anthropic import ChatAnthropic  # noqa: E402
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.runnables import RunnableLambda  # noqa: E402
from langchain_core.tools import tool  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from openinference.instrumentation.langchain import LangChainInstrumentor  # noqa: E402

from otlp import SAMPLES, Spans  # noqa: E402

PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{calls.PNG}"}}
MODELS = {
    "chat": ChatOpenAI(model="gpt-4o-mini", base_url=f"{address}/v1", max_retries=0),
    "responses": ChatOpenAI(
        model="gpt-4o-mini", base_url=f"{address}/v1", use_responses_api=True, max_retries=0
    ),
    "anthropic": ChatAnthropic(
        model="claude-haiku-4-5",
        base_url=address,
        max_retries=0,
        max_tokens=2048,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ),
}


@tool
def weather(city: str) -> object:
    """Return the weather in a city."""
    return "sun" if city == "Graz" else [{"type": "text", "text": "rain"}, PICTURE]


def ask(model: object, turns: list[object], *, stream: bool) -> AIMessage:
    """Call a model, whole or streamed."""
    if not stream:
        return model.invoke(turns)
    whole = None
    for chunk in model.stream(turns):
        whole = chunk if whole is None else whole + chunk
    return whole


def talk(name: str, *, stream: bool = False, fail: bool = False) -> None:
    """Answer the question with a tool, as a chain, so that its runs are one trace."""
    model = MODELS[name].bind_tools([weather])

    def chain(question: str) -> str:
        turns = [SystemMessage(calls.SYSTEM), HumanMessage(question)]
        answer = ask(model, turns, stream=stream)
        turns.append(answer)
        for call in answer.tool_calls:
            result = weather.invoke(call)
            turns.append(
                result
                if isinstance(result, ToolMessage)
                else ToolMessage(str(result), tool_call_id=call["id"])
            )
        return ask(model, turns, stream=stream).text

    RunnableLambda(chain, name="agent").invoke("Please fail" if fail else calls.QUESTION)


spans = Spans()
LangChainInstrumentor().instrument(tracer_provider=spans.provider)
for name in MODELS:
    spans.run(name, talk, name)
    spans.run(f"{name} stream", talk, name, stream=True)
spans.run("chat fail", talk, "chat", fail=True)
spans.write("openinference_langchain.jsonl")
deadline = time.monotonic() + 20
while time.monotonic() < deadline and not (
    server.Handler.runs and all("end_time" in run for run in server.Handler.runs.values())
):
    time.sleep(0.2)


def exported(run: dict[str, object]) -> dict[str, object]:
    """Return a run with the fields that LangSmith's own export has."""
    dropped = {"serialized", "events", "session_name", "attachments", "dotted_order", "tags"}
    kept = {name: value for name, value in run.items() if name not in dropped}
    extra = dict(kept.get("extra") or {})
    extra.pop("runtime", None)
    metadata = {
        k: v
        for k, v in (extra.get("metadata") or {}).items()
        if not k.startswith(("LANG", "revision"))
    }
    if isinstance(kept.get("error"), str):
        kept["error"] = kept["error"].partition("Traceback")[0].strip()
    return {**kept, "extra": {**extra, "metadata": metadata}}


runs = sorted(server.Handler.runs.values(), key=lambda run: str(run.get("dotted_order")))
with (SAMPLES / "langsmith_langchain.jsonl").open("w") as file:
    for run in runs:
        print(json.dumps(exported(run), ensure_ascii=False), file=file)
print(f"langsmith_langchain.jsonl: {len(runs)} runs")
os._exit(0)  # the SDK goes on waiting for its service
