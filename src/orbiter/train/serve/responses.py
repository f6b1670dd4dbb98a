"""OpenAI's Responses API: reads a request as a conversation; writes whole or streamed answers.

Nothing is kept between requests, so `previous_response_id` and `conversation` are refused: a client
sends the whole conversation, as it does with `store=False`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from orbiter.train.serve.asked import (
    ChatRequest,
    MaxTokens,
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
from orbiter.train.serve.reply import GrowingReply
from orbiter.train.serve.stream import News, event

Item = dict[str, Any]
"""One item of a request's input or of an answer's output."""


class ResponsesRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A request for a response."""

    model: str
    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: MaxTokens = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None


ALLOWED: Mapping[str, Sequence[object] | None] = {
    # Supported settings.
    **dict.fromkeys(ResponsesRequest.__struct_fields__),
    # Settings that do not change the answer.
    **dict.fromkeys(
        (
            "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "prompt_cache_options", "prompt_cache_retention", "include", "stream_options",
        )
    ),
    # Unsupported settings, with the values that have no effect.
    "background": [False],
    "truncation": ["disabled"],
    "text": [{}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}],
    "reasoning": [{}, {"effort": "none"}, {"effort": None}],
    "top_logprobs": [0],
    "previous_response_id": [],
    "conversation": [],
    "prompt": [],
}  # fmt: skip
"""The known settings, see `drop_unsupported`; any other is refused."""

KEPT_ELSEWHERE = ("previous_response_id", "conversation", "prompt")
"""Settings that refer to messages stored on OpenAI's servers; they are refused, never dropped."""


def parse(body: bytes, *, lenient: bool = False) -> ParsedRequest:
    """Read a request.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    fields = decode(body)
    # Before the unsupported settings are dropped: dropping these would lose the conversation.
    for name in KEPT_ELSEWHERE:
        if fields.get(name) is not None:
            raise Refusal(
                400, f"{name} is not supported: send the whole conversation, none is stored here",
                param=name,
            )  # fmt: skip
    dropped = drop_unsupported(fields, ALLOWED, lenient=lenient)
    asked = convert(fields, ResponsesRequest)
    tools = []
    for index, tool in enumerate(asked.tools or ()):
        # OpenAI's built-in tools run on its servers and cannot be offered here.
        if tool.get("type") != "function" and lenient:
            dropped.append(f"tools.{tool.get('type')}")
        else:
            tools.append(_tool(tool, f"tools[{index}]"))
    fields = {
        "model": asked.model,
        "messages": _messages(asked),
        "tools": tools or None,
        "tool_choice": _tool_choice(asked.tool_choice),
        "parallel_tool_calls": asked.parallel_tool_calls,
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
        "stream": asked.stream,
    }
    request = convert(fields, ChatRequest)
    check_request(request)
    return ParsedRequest(request, dropped)


def _messages(asked: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    for index, item in enumerate(asked.input):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[dict[str, Any]], item: Item, path: str) -> None:
    """Add an item; the calls of one turn belong to one message, with its text."""
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        # Calls without text before them come without a message item, so one is made.
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        result = {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
        messages.append(result)
    elif kind != "reasoning":  # reasoning belongs only to the answer that it came with
        raise Refusal(400, f"an item of type {kind!r:.80} is not supported", param=f"{path}.type")


def _tool(tool: Mapping[str, Any], path: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = tool.get("type")
        raise Refusal(400, f"a tool of type {kind!r:.80} is not supported", param=f"{path}.type")
    function = {k: v for k, v in tool.items() if k != "type" and v is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: object) -> object:
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


class ResponsesWriter:
    """Writes one reply as a response."""

    def __init__(
        self, reply: GrowingReply, request: ChatRequest, shared: SharedFields, tokenizer: Tokenizer
    ) -> None:
        """Create a writer that has sent nothing."""
        del tokenizer  # ids and log probabilities are not part of this API here
        self._reply, self._request, self._shared = reply, request, shared
        self._number = 0
        self._text = ""
        self._opened = False

    def whole(self) -> dict[str, object]:
        """Return the whole answer."""
        done = finished(self._reply.choices[0], self._request)
        cut = done.finish_reason == "length"
        output: list[Item] = []
        if done.content or not done.calls:
            output.append(self._message(done.content or "", "incomplete" if cut else "completed"))
        for index, call in enumerate(done.calls):
            output.append(self._call(index, call.name, call.arguments_text()))
        body = self._body("incomplete" if cut else "completed", output)
        if cut:
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        prompt, drawn = len(self._reply.prompt_ids), count_drawn(self._reply.choices)
        body["usage"] = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": drawn,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + drawn,
        }
        return body

    def opening(self) -> list[bytes]:
        """Write the events that begin the response."""
        body = self._body("in_progress", [])
        return [
            self._event("response.created", response=body),
            self._event("response.in_progress", response=body),
        ]

    def news(self, news: News) -> list[bytes]:
        """Write the new part of the answer."""
        pieces = []
        # An answer without text and calls still has one (empty) text part.
        wanted = news.text or (news.done is not None and not news.done.calls)
        if wanted and not self._opened:
            self._opened = True
            pieces += [
                self._event(
                    "response.output_item.added", output_index=0, item=self._message("", None)
                ),
                self._event("response.content_part.added", **self._at(), part=_part("")),
            ]
        if news.text:
            self._text += news.text
            delta = self._at() | {"delta": news.text, "logprobs": []}
            pieces.append(self._event("response.output_text.delta", **delta))
        if news.done is not None:
            pieces += self._ending()
        return pieces

    def closing(self) -> list[bytes]:
        """End the response."""
        # The last event repeats the whole response, which some clients read instead of the
        # deltas.
        body = self.whole()
        return [self._event(f"response.{body['status']}", response=body)]

    def failed(self, refusal: Refusal) -> list[bytes]:
        """End the stream with an error."""
        body = self._body("failed", [])
        body["error"] = {"code": "server_error", "message": refusal.message}
        return [self._event("response.failed", response=body)]

    def _ending(self) -> list[bytes]:
        """Complete the text, then send the calls."""
        pieces = []
        body = self.whole()
        items: Any = body["output"]
        # The order is that of `whole`, so the indices of both agree.
        for index, item in enumerate(items):
            at = {"output_index": index, "item_id": item["id"]}
            if item["type"] == "message":
                pieces += [
                    self._event(
                        "response.output_text.done", **self._at(), text=self._text, logprobs=[]
                    ),
                    self._event("response.content_part.done", **self._at(), part=_part(self._text)),
                ]
            else:
                arguments = item["arguments"]
                kind = "response.function_call_arguments"
                begun = item | {"arguments": "", "status": "in_progress"}
                pieces += [
                    self._event("response.output_item.added", output_index=index, item=begun),
                    self._event(f"{kind}.delta", **at, delta=arguments),
                    self._event(f"{kind}.done", **at, arguments=arguments, name=item["name"]),
                ]
            pieces.append(self._event("response.output_item.done", output_index=index, item=item))
        return pieces

    def _body(self, status: str, output: list[Item]) -> dict[str, object]:
        request = self._request
        return {
            "id": f"resp_{self._shared.key}",
            "object": "response",
            "created_at": self._shared.created,
            "status": status,
            "model": self._shared.model,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "temperature": request.temperature,
            "top_p": request.top_p,
            # The answer's schema knows only some objects here, so a named tool is reported as
            # "auto".
            "tool_choice": request.tool_choice if isinstance(request.tool_choice, str) else "auto",
            "tools": [{"type": "function", **tool["function"]} for tool in request.tools or ()],
            "usage": None,
        }

    def _message(self, text: str, status: str | None) -> Item:
        return {
            "id": f"msg_{self._shared.key}",
            "type": "message",
            "role": "assistant",
            "status": status or "in_progress",
            "content": [] if status is None else [_part(text)],
        }

    def _call(self, index: int, name: str, arguments: str) -> Item:
        return {
            "id": f"fc_{self._shared.key}_{index}",
            "type": "function_call",
            "call_id": self._shared.call_id(0, index),
            "name": name,
            "arguments": arguments,
            "status": "completed",
        }

    def _at(self) -> dict[str, Any]:
        """Return the fields that identify the answer's only text part."""
        return {"item_id": f"msg_{self._shared.key}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: object) -> bytes:
        # Clients put events in order by this number.
        number = self._number
        self._number += 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
