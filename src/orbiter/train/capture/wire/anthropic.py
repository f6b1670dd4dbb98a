"""Convert Anthropic's messages to the form of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orbiter.train.capture.wire.chat import are_messages
from orbiter.train.chat.message import Json, Message, text_of
from orbiter.train.chat.reply import Fields, Reply, Unreadable, counts, decode
from orbiter.train.chat.tool_calls import function_call

TERMINAL = (b'"type":"message_stop"', b'"type": "message_stop"')
"""Byte patterns, one of which is in the last event of a stream."""

_USAGE = {
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "cached_tokens": ("cache_read_input_tokens",),
    "cache_write_tokens": ("cache_creation_input_tokens",),
}
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})


def accepts(fields: Fields, *, certain: bool) -> bool:
    """Return whether a request has the shape of a message request.

    Args:
        fields: The request's top level.
        certain: Whether the host and the path alone identify Anthropic's API.
    """
    return are_messages(fields.get("messages")) and (
        # Other services have lists of messages too; Anthropic's requires both of these.
        certain or "max_tokens" in fields or "model" in fields
    )


def parts(fields: Fields) -> list[msgspec.Raw | bytes]:
    """Return the conversation of a request, message by message, the system message first."""
    system = fields.get("system")
    # Joined as bytes, so that the raw conversation can be compared without decoding.
    head = [] if system is None else [b'{"role":"system","content":%b}' % bytes(system)]
    return [*head, *(_LIST.decode(fields["messages"]) if "messages" in fields else [])]


def chat(messages: list[Json]) -> list[Message]:
    """Return messages in OpenAI's form; tool results become separate messages."""
    return [turned for message in messages for turned in message_in_openai_form(message)]


def tools(given: Json) -> list[Message]:
    """Return tools in OpenAI's form; one that Anthropic defines itself keeps its form."""
    return [_tool(tool) for tool in given] if isinstance(given, list) else []


def reply(body: Json) -> Reply:
    """Parse a complete response.

    Raises:
        Unreadable: it is not a message.
    """
    blocks = body.get("content") if isinstance(body, dict) else None
    if not isinstance(blocks, list) or not all(map(_is_block, blocks)):
        raise Unreadable(f"not a message: {str(body)[:120]}")
    return Reply(
        text="".join([text_of(block) for block in _of(blocks, "text")]),
        tool_calls=_calls(blocks),
        server_calls=_server_calls(blocks),
        reasoning="".join([str(block.get("thinking", "")) for block in _of(blocks, "thinking")]),
        response_id=body.get("id"),
        model=body.get("model"),
        finish_reason=body.get("stop_reason"),
        usage=_usage(body.get("usage")),
    )


def assemble(events: Iterable[Json]) -> Reply:
    """Join a stream's events; if the end is missing, the reply's error says so."""
    body: dict[str, Any] = {"content": []}
    blocks: list[_Block] = []
    error: str | None = None
    for event in events:
        kind = event.get("type")
        if kind == "message_start":
            # The opening event carries id, model and the input's token counts.
            body |= event["message"]
        elif kind == "content_block_start":
            # A copy, because the block grows and the event may still be looked at.
            blocks.append(_Block(event.get("index"), dict(event["content_block"])))
        elif kind == "content_block_delta":
            _block_at(blocks, event.get("index")).grow(event["delta"])
        elif kind == "message_delta":
            # Later counts replace earlier ones, but a null must not erase them.
            usage = {**(body.get("usage") or {}), **_present(event.get("usage"))}
            body |= {**_present(event.get("delta")), "usage": usage}
        elif kind == "error":
            # Noted and not raised: what came before it is kept.
            error = str(event.get("error"))
    # Some servers put the whole content into `message_start` and stream no blocks.
    content = [block.closed() for block in blocks] or body["content"]
    answer = reply(body | {"content": content})
    answer.error = error
    return answer


def message_in_openai_form(message: Json) -> list[Message]:
    """Return one message in OpenAI's form, its tool results first."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(content, list):
        # Already in OpenAI's form: a text needs no change.
        return [message if message.keys() <= {"role", "content"} else dict(message)]
    blocks = [
        {"type": "text", "text": block} if isinstance(block, str) else block for block in content
    ]
    results: list[Message] = [_result(block) for block in _of(blocks, "tool_result")]
    # Reasoning belongs to the reply it came with. Every other block stays, unknown kinds included.
    content_blocks = [
        b for b in blocks if b.get("type") not in ("tool_result", "tool_use", *_THOUGHTS)
    ]
    calls = _calls(blocks)
    if not content_blocks and not calls:
        return results
    # Images and documents keep their blocks, which the item stores as they are.
    plain = all(block.get("type") == "text" for block in content_blocks)
    turned: dict[str, Any] = {
        "role": role,
        "content": text_of(content_blocks) if plain else content_blocks,
    }
    if calls:
        # OpenAI writes null where there are only calls.
        turned |= {"content": turned["content"] or None, "tool_calls": calls}
    return [*results, turned]


def _result(block: Json) -> Message:
    """Return a tool result; one with images keeps its blocks."""
    content = block.get("content")
    plain = not isinstance(content, list) or all(
        isinstance(part, str) or part.get("type") == "text" for part in content
    )
    message: dict[str, Any] = {
        "role": "tool",
        "tool_call_id": block.get("tool_use_id"),
        "content": text_of(content) if plain else content,
    }
    return message | ({"is_error": True} if block.get("is_error") else {})


def _tool(tool: Json) -> Message:
    # Anthropic's own tools, such as its web search, have a type and no schema.
    if not isinstance(tool, dict) or "input_schema" not in tool:
        return dict(tool) if isinstance(tool, dict) else {}
    function = {"name": tool.get("name"), "description": tool.get("description", "")}
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def _calls(blocks: list[Json]) -> list[Message]:
    return [
        function_call(block.get("id"), block.get("name"), block.get("input"))
        for block in _of(blocks, "tool_use")
    ]


def _server_calls(blocks: list[Json]) -> list[Json]:
    """Return the calls that the server executed itself, each with its result block."""
    calls: dict[str, dict[str, Any]] = {}
    for block in blocks:
        # A result names the call by tool_use_id, the call itself by id.
        kind, call_id = str(block.get("type")), str(block.get("tool_use_id") or block.get("id"))
        if kind.endswith("_tool_use"):
            calls[call_id] = {
                "name": str(block.get("name") or kind.removesuffix("_tool_use")),
                "arguments": block.get("input"),
                "raw": [block],
            }
        elif kind.endswith("_tool_result"):
            name = kind.removesuffix("_tool_result")
            calls.setdefault(call_id, {"name": name, "raw": []})["raw"].append(block)
    return list(calls.values())


def _of(blocks: list[Json], kind: str) -> list[Json]:
    return [block for block in blocks if block.get("type") == kind]


def _is_block(block: Json) -> bool:
    return (
        isinstance(block, dict)
        and isinstance(block.get("type"), str)
        and not (block["type"] == "text" and not isinstance(block.get("text"), str))
    )


def _present(values: Json) -> dict[str, Any]:
    """Drop null fields, so that a later event does not erase an earlier value."""
    return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else {}


def _usage(given: Json) -> dict[str, int]:
    """Return token counts; Anthropic's `input_tokens` exclude cached ones, ours include them."""
    usage = counts(given, _USAGE)
    cached = usage.get("cached_tokens", 0) + usage.get("cache_write_tokens", 0)
    if "input_tokens" in usage or cached:
        usage["input_tokens"] = usage.get("input_tokens", 0) + cached
    return usage


class _Block:
    """One block of a streamed answer."""

    def __init__(self, index: object, block: dict[str, Any]) -> None:
        self.index, self._block = index, block
        self._texts: dict[str, list[str]] = {}

    def grow(self, delta: Json) -> None:
        """Add one event's delta."""
        for name in ("text", "thinking", "partial_json"):
            if isinstance(piece := delta.get(name), str):
                self._texts.setdefault(name, []).append(piece)
        if delta.get("type") == "citations_delta" and "citation" in delta:
            # Citations come one by one and belong to the text of their block.
            self._block["citations"] = [*(self._block.get("citations") or ()), delta["citation"]]

    def closed(self) -> dict[str, Any]:
        """Return the complete block; a call's input that is invalid JSON stays text."""
        block = dict(self._block)
        for name in ("text", "thinking"):
            if name in self._texts:
                block.setdefault("type", name)
                # The start event may already hold the beginning of the text.
                block[name] = str(block.get(name) or "") + "".join(self._texts[name])
        if written := "".join(self._texts.get("partial_json", ())):
            block.setdefault("type", "tool_use")
            try:
                block["input"] = decode(written.encode())
            except Unreadable:
                block["input"] = written
        return block


def _block_at(blocks: list[_Block], index: object) -> _Block:
    """Return the latest block with an index; the latest of all if the server omits indices."""
    for block in reversed(blocks):
        if index is None or block.index == index:
            return block
    blocks.append(_Block(index, {}))
    return blocks[-1]
