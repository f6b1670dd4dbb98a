"""Anthropic's messages: reads a request as a conversation, and writes the answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from orbiter.train.chat.message import Message
from orbiter.train.serve.asked import (
    ChatRequest,
    ParsedRequest,
    Refusal,
    SharedFields,
    Tokenizer,
    check_request,
    convert,
    count_drawn,
    decode,
    drop_unsupported,
    finished,
)
from orbiter.train.serve.reply import GrowingAnswer, GrowingReply
from orbiter.train.serve.stream import News, event


class MessagesRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A request for a message."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None


ALLOWED: Mapping[str, Sequence[object] | None] = {
    # Supported settings.
    **dict.fromkeys(MessagesRequest.__struct_fields__),
    # Settings that do not change the answer.
    **dict.fromkeys(("metadata", "service_tier", "cache_control", "inference_geo")),
    # Unsupported settings, with the values that have no effect.
    "top_k": [-1, 0],
    "thinking": [{"type": "disabled"}],
}
"""The known settings, see `drop_unsupported`; any other is refused."""


def parse(body: bytes, *, lenient: bool = False) -> ParsedRequest:
    """Read a request.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    fields = decode(body)
    dropped = drop_unsupported(fields, ALLOWED, lenient=lenient)
    asked = convert(fields, MessagesRequest)
    messages: list[Message] = []
    if asked.system:
        messages.append({"role": "system", "content": asked.system})
    for index, message in enumerate(asked.messages):
        messages += _turned(message, f"messages[{index}]")
    tools = []
    for index, tool in enumerate(asked.tools or ()):
        # Anthropic's own tools (search, computer use) have a type instead of a schema.
        if "input_schema" not in tool and lenient:
            dropped.append(f"tools.{tool.get('type')}")
        else:
            tools.append(_tool(tool, f"tools[{index}]"))
    choice = asked.tool_choice or {}
    # Through the chat request, so that one set of checks and one decode loop serve all dialects.
    request = convert(
        {
            "model": asked.model,
            "messages": messages,
            "tools": tools or None,
            "tool_choice": _tool_choice(choice),
            "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None,
            "max_completion_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "stop": asked.stop_sequences,
            "stream": asked.stream,
        },
        ChatRequest,
    )
    check_request(request)
    return ParsedRequest(request, dropped)


def error_body(refusal: Refusal) -> dict[str, object]:
    """Return the body of an error, in Anthropic's form."""
    # Anthropic names a server's error api_error, whatever kind it has here.
    kind = "api_error" if refusal.status >= 500 else refusal.kind
    return {"type": "error", "error": {"type": kind, "message": refusal.message}}


def _turned(message: Message, path: str) -> list[Message]:
    """Return a message in chat completions' form; tool results become messages before it."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise Refusal(400, f"role must be user or assistant, got {role!r:.80}", param=path)
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    blocks = [_block(block, f"{path}.content[{index}]") for index, block in enumerate(content)]
    results = [_result(block) for block in blocks if block["type"] == "tool_result"]
    calls = [_call_of(block) for block in blocks if block["type"] == "tool_use"]
    texts = [block for block in blocks if block["type"] == "text"]
    # A message with nothing but tool results becomes tool messages alone, without an empty turn.
    if results and not texts and not calls:
        return results
    turned: dict[str, Any] = {"role": role, "content": texts}
    if calls:
        turned["tool_calls"] = calls
    return [*results, turned]


def _block(block: object, path: str) -> Mapping[str, Any]:
    """Check the kind of a block; drop thoughts, which belong to the answer they came with."""
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    known = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")
    if not isinstance(block, Mapping) or kind not in known:
        problem = f"content may hold text and calls only, got a block of type {kind!r:.80}"
        raise Refusal(400, problem, param=path)
    return block


def _result(block: Mapping[str, Any]) -> Message:
    content = block.get("content") or ""
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}


def _call_of(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": block.get("name"), "arguments": block.get("input")}
    return {"id": block.get("id"), "type": "function", "function": function}


def _tool(tool: Mapping[str, Any], path: str) -> dict[str, Any]:
    if not isinstance(tool.get("name"), str) or not isinstance(tool.get("input_schema"), Mapping):
        raise Refusal(
            400, f'a tool must be {{"name": ..., "input_schema": {{...}}}}, got {tool!r:.80}',
            param=path,
        )  # fmt: skip
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any]) -> object:
    # Anthropic's "any" is OpenAI's "required".
    kinds = {"auto": "auto", "any": "required", "none": "none", None: None}
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in kinds:
        raise Refusal(400, f"tool_choice.type {kind!r:.80} is not known", param="tool_choice.type")
    return kinds[kind]


class MessagesWriter:
    """Writes one reply as a message."""

    def __init__(
        self, reply: GrowingReply, request: ChatRequest, shared: SharedFields, tokenizer: Tokenizer
    ) -> None:
        """Create a writer that has sent nothing."""
        del tokenizer  # ids and log probabilities are not part of this API here
        self._reply, self._request, self._shared = reply, request, shared
        self._text_open = False

    def whole(self) -> dict[str, object]:
        """Return the whole answer."""
        choice = self._reply.choices[0]
        done = finished(choice, self._request)
        content: list[dict[str, object]] = []
        # Clients expect at least one block, so an empty answer has an empty text.
        if done.content or not done.calls:
            content.append({"type": "text", "text": done.content or ""})
        for index, call in enumerate(done.calls):
            content.append(self._call(index, call.name) | {"input": call.arguments})
        return self._body(content) | self._end(choice)

    def opening(self) -> list[bytes]:
        """Write the event that begins the message."""
        body = self._body([]) | {"stop_reason": None, "stop_sequence": None}
        return [_event("message_start", message=body)]

    def news(self, news: News) -> list[bytes]:
        """Write the new part: text as it arrives, calls at the end."""
        pieces = []
        wanted = news.text or (news.done is not None and not news.done.calls)
        if wanted and not self._text_open:
            self._text_open = True
            # An index counts the blocks of the message; the text, if there is any, is block 0.
            block = {"type": "text", "text": ""}
            pieces.append(_event("content_block_start", index=0, content_block=block))
        if news.text:
            delta = {"type": "text_delta", "text": news.text}
            pieces.append(_event("content_block_delta", index=0, delta=delta))
        if news.done is None:
            return pieces
        if self._text_open:
            pieces.append(_event("content_block_stop", index=0))
        for position, call in enumerate(news.done.calls):
            # A bool counts as 0 or 1: the calls come after the text block.
            index = position + self._text_open
            begun = self._call(position, call.name) | {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": call.arguments_text()}
            pieces += [
                _event("content_block_start", index=index, content_block=begun),
                _event("content_block_delta", index=index, delta=delta),
                _event("content_block_stop", index=index),
            ]
        return pieces

    def closing(self) -> list[bytes]:
        """End the message."""
        end = self._end(self._reply.choices[0])
        # Output tokens are only known at the end, so the closing event repeats the usage.
        usage = {"output_tokens": count_drawn(self._reply.choices)}
        delta = {name: end[name] for name in ("stop_reason", "stop_sequence")}
        return [_event("message_delta", delta=delta, usage=usage), _event("message_stop")]

    def failed(self, refusal: Refusal) -> list[bytes]:
        """End the stream with an error."""
        return [event(error_body(refusal), "error")]

    def _body(self, content: list[dict[str, object]]) -> dict[str, object]:
        prompt, drawn = len(self._reply.prompt_ids), count_drawn(self._reply.choices)
        return {
            "id": f"msg_{self._shared.key}",
            "type": "message",
            "role": "assistant",
            "model": self._shared.model,
            "content": content,
            "usage": {"input_tokens": prompt, "output_tokens": drawn},
        }

    def _call(self, index: int, name: str) -> dict[str, object]:
        return {"type": "tool_use", "id": self._shared.call_id(0, index), "name": name}

    def _end(self, choice: GrowingAnswer) -> dict[str, object]:
        """Return why the answer ended, in Anthropic's words."""
        reason = finished(choice, self._request).finish_reason
        stop = choice.text.stopped_by
        # Anthropic says which stop text ended the answer; OpenAI does not.
        reasons = {
            "tool_calls": "tool_use",
            "length": "max_tokens",
            "stop": "end_turn" if stop is None else "stop_sequence",
        }
        return {"stop_reason": reasons[reason], "stop_sequence": stop}


def _event(kind: str, **fields: object) -> bytes:
    return event({"type": kind, **fields}, kind)
