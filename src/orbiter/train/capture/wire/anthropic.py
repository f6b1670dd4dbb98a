"""Anthropic's messages, put into OpenAI's form of a chat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orbiter.train.chat.reply import (
    Fields,
    Json,
    Message,
    Reply,
    Unreadable,
    counts,
    decode,
    tool_call,
)
from orbiter.train.chat.transcript import text_of

TERMINAL = (b'"type":"message_stop"', b'"type": "message_stop"')
"""What the last event of a stream holds."""

_USAGE = {
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "cached_tokens": ("cache_read_input_tokens",),
}
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def parts(fields: Fields) -> list[msgspec.Raw | bytes]:
    """Return the conversation of a request, message by message, the system's first."""
    system = fields.get("system")
    head = [] if system is None else [b'{"role":"system","content":%b}' % bytes(system)]
    return [*head, *(_LIST.decode(fields["messages"]) if "messages" in fields else [])]


def chat(messages: list[Json]) -> list[Message]:
    """Return messages in OpenAI's form: tools' results become messages of their own."""
    return [turned for message in messages for turned in _turned(message)]


def tools(given: Json) -> list[Message]:
    """Return tools as OpenAI writes them; a tool of Anthropic's own keeps its form."""
    return [_tool(tool) for tool in given] if isinstance(given, list) else []


def reply(body: Json) -> Reply:
    """Read a whole response.

    Raises:
        Unreadable: it is no message.
    """
    blocks = body.get("content") if isinstance(body, dict) else None
    if not isinstance(blocks, list):
        raise Unreadable(f"no message: {str(body)[:120]}")
    return Reply(
        text="".join([text_of(block) for block in _of(blocks, "text")]),
        tool_calls=_calls(blocks),
        reasoning="".join([str(block.get("thinking", "")) for block in _of(blocks, "thinking")]),
        response_id=body.get("id"),
        model=body.get("model"),
        finish_reason=body.get("stop_reason"),
        usage=counts(body.get("usage"), _USAGE),
    )


def assemble(events: Iterable[Json]) -> Reply:
    """Put a stream's events together; what is missing at its end is noted as its error."""
    body: dict[str, Any] = {"content": []}
    blocks: dict[int, dict[str, Any]] = {}
    error: str | None = None
    for event in events:
        kind = event.get("type")
        if kind == "message_start":
            body |= event["message"]
        elif kind == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            _grow(blocks.setdefault(event["index"], {}), event["delta"])
        elif kind == "message_delta":
            usage = {**(body.get("usage") or {}), **(event.get("usage") or {})}
            body |= {**event["delta"], "usage": usage}
        elif kind == "error":
            error = str(event.get("error"))
    answer = reply(body | {"content": [_closed(blocks[index]) for index in sorted(blocks)]})
    answer.error = error
    return answer


def _turned(message: Json) -> list[Message]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    results = [
        {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": text_of(block.get("content")),
        }
        for block in _of(content, "tool_result")
    ]
    said = [block for block in content if block.get("type") in {"text", "image", "document"}]
    calls = _calls(content)
    if not said and not calls:
        return results
    plain = all(block.get("type") == "text" for block in said)
    turned: Message = {"role": role, "content": text_of(said) if plain else said}
    if calls:
        turned |= {"content": turned["content"] or None, "tool_calls": calls}
    return [*results, turned]


def _tool(tool: Json) -> Message:
    if "input_schema" not in tool:
        return dict(tool)
    function = {"name": tool.get("name"), "description": tool.get("description", "")}
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def _calls(blocks: list[Json]) -> list[Message]:
    return [tool_call(b.get("id"), b.get("name"), b.get("input")) for b in _of(blocks, "tool_use")]


def _of(blocks: list[Json], kind: str) -> list[Json]:
    return [block for block in blocks if block.get("type") == kind]


def _grow(block: dict[str, Any], delta: Json) -> None:
    """Add one event's part of a block."""
    kind = delta.get("type")
    if kind == "text_delta":
        block["text"] = block.get("text", "") + delta["text"]
    elif kind == "thinking_delta":
        block["thinking"] = block.get("thinking", "") + delta["thinking"]
    elif kind == "input_json_delta":
        block["written"] = block.get("written", "") + delta["partial_json"]


def _closed(block: dict[str, Any]) -> dict[str, Any]:
    """Read the input of a call that came in pieces; a broken one stays a text."""
    if "written" in block:
        written = block.pop("written")
        try:
            block["input"] = decode(written.encode()) if written else {}
        except Unreadable:
            block["input"] = written
    return block
