"""The same conversations with the OpenAI and Anthropic SDKs, for the fixtures.

Each function is one conversation of two calls: a system prompt and a question with a tool, which
gets two parallel calls, and their results, one of them with an image, which get an answer.
"""

from __future__ import annotations

import json
from typing import Any

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
SYSTEM, QUESTION = "Be brief.", "The weather in Graz and Linz?"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ABOUT = "Return the weather in a city."
RESULTS = [("call_graz", "sun"), ("call_linz", "rain")]


def chat(client: Any, *, stream: bool = False, fail: bool = False) -> None:
    """Talk through chat completions."""
    tools = [
        {
            "type": "function",
            "function": {"name": "weather", "description": ABOUT, "parameters": SCHEMA},
        }
    ]
    turns: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Please fail" if fail else QUESTION},
    ]
    more: dict[str, Any] = (
        {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    )
    first = client.chat.completions.create(
        model="gpt-4o-mini", messages=turns, tools=tools, temperature=0.5, **more
    )
    if stream:
        list(first)
    calls = [
        {
            "id": call,
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": call[5:].title()})},
        }
        for call, _ in RESULTS
    ]
    turns.append({"role": "assistant", "content": "I look it up.", "tool_calls": calls})
    turns += [{"role": "tool", "tool_call_id": call, "content": text} for call, text in RESULTS]
    turns.append({"role": "user", "content": [
        {"type": "text", "text": "And this picture?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]})  # fmt: skip
    last = client.chat.completions.create(
        model="gpt-4o-mini", messages=turns, tools=tools, temperature=0.5, **more
    )
    if stream:
        list(last)


def responses(client: Any, *, stream: bool = False, fail: bool = False) -> None:
    """Talk through the Responses API."""
    tools = [
        {
            "type": "function",
            "name": "weather",
            "description": ABOUT,
            "parameters": SCHEMA,
            "strict": False,
        }
    ]
    turns: list[Any] = [{"role": "user", "content": "Please fail" if fail else QUESTION}]
    first = client.responses.create(
        model="gpt-4o-mini", instructions=SYSTEM, input=turns, tools=tools, stream=stream
    )
    if stream:
        list(first)
    turns.append({"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                  "content": [{"type": "output_text", "text": "I look it up.", "annotations": []}]})  # fmt: skip
    turns += [
        {
            "type": "function_call",
            "call_id": call,
            "name": "weather",
            "arguments": json.dumps({"city": call[5:].title()}),
        }
        for call, _ in RESULTS
    ]
    picture = [
        {"type": "input_text", "text": "rain"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
    ]
    turns += [
        {"type": "function_call_output", "call_id": "call_graz", "output": "sun"},
        {"type": "function_call_output", "call_id": "call_linz", "output": picture},
    ]
    last = client.responses.create(
        model="gpt-4o-mini", instructions=SYSTEM, input=turns, tools=tools, stream=stream
    )
    if stream:
        list(last)


def anthropic(client: Any, *, stream: bool = False, fail: bool = False) -> None:
    """Talk through the Messages API."""
    tools = [{"name": "weather", "description": ABOUT, "input_schema": SCHEMA}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    fixed: dict[str, Any] = {
        "model": "claude-haiku-4-5", "max_tokens": 2048, "system": SYSTEM, "tools": tools,
        "thinking": thinking, "stream": stream,
    }  # fmt: skip
    turns: list[Any] = [{"role": "user", "content": "Please fail" if fail else QUESTION}]
    first = client.messages.create(messages=turns, **fixed)
    if stream:
        list(first)
    uses = [
        {"type": "tool_use", "id": call, "name": "weather", "input": {"city": call[5:].title()}}
        for call, _ in RESULTS
    ]
    turns.append(
        {"role": "assistant", "content": [{"type": "text", "text": "I look it up."}, *uses]}
    )
    picture = [{"type": "text", "text": "rain"},
               {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]  # fmt: skip
    turns.append({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "call_graz", "content": "sun"},
        {"type": "tool_result", "tool_use_id": "call_linz", "content": picture},
    ]})  # fmt: skip
    last = client.messages.create(messages=turns, **fixed)
    if stream:
        list(last)
