"""The wire: what a request may say, what is wrong with it in OpenAI's words, and the answer's form.

A setting that would change the answer and is not supported is refused, never passed over; fields
that change nothing (`user`, `metadata`, `store`, ...) are. Token ids come on request under vLLM's
names. Left out: the stream's pieces (`stream.py`), and every other endpoint of OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import Call, parse_calls
from orbiter.train.serve.reply import Choice, Drawn, Reply

NEUTRAL: Mapping[str, Sequence[object]] = {
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "repetition_penalty": [1],
    "logit_bias": [{}],
    "top_k": [-1, 0],
    "min_p": [0],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "audio": [],
    "prediction": [],
    "web_search_options": [],
}
"""Settings that are not supported, each with the values that ask for nothing."""

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",  # OpenAI's later word for it, which no template knows
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

MaxTokens = Annotated[int, Meta(ge=1)] | None


class StreamOptions(msgspec.Struct):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A request for a chat completion; the defaults are OpenAI's. null is as good as absent."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    return_token_ids: bool | None = None

    @property
    def stops(self) -> list[str]:
        """The stop texts, as a list without empty ones."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def longest(self) -> int | None:
        """The answer's length at most, under either name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that may be called: none, all, or the one that `tool_choice` names."""
        if not self.tools or self.tool_choice == "none":
            return []
        if not isinstance(self.tool_choice, Mapping):
            return self.tools
        chosen = (self.tool_choice.get("function") or {}).get("name")
        return [tool for tool in self.tools if tool["function"]["name"] == chosen]

    @property
    def offered_names(self) -> list[str]:
        """The names of the tools that may be called."""
        return [tool["function"]["name"] for tool in self.offered]


class Refusal(Exception):  # noqa: N818 - it is an answer, in OpenAI's words
    """A request that gets no answer: status and error body."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        """Say what was wrong; `param` is the request's field."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, object]:
        """Return what is sent."""
        kinds = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }
        kind = "server_error" if self.status >= 500 else kinds.get(self.status)
        kind = kind or "invalid_request_error"
        what = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": what}


def parse_request(body: bytes) -> ChatRequest:
    """Read a request.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    try:
        fields = msgspec.json.decode(body)
        request = msgspec.convert(fields, ChatRequest)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")
        param = place.rstrip("`").lstrip(".") or None
        where = f" in {param}" if param else ""
        raise Refusal(400, f"{what}{where}", param=param) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}") from error
    _refuse_unsupported(fields)
    _check_tools(request)
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")
    return request


def _refuse_unsupported(fields: Mapping[str, object]) -> None:
    for name, neutral in NEUTRAL.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            raise Refusal(400, f"{name}={value!r:.80} is not supported by this server", param=name)


def _check_tools(request: ChatRequest) -> None:
    for index, tool in enumerate(request.tools or ()):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refusal(
                400,
                'a tool must be {"type": "function", "function": {"name": ..., ...}}, '
                f"got {tool!r:.80}",
                param=f"tools[{index}]",
            )
    choice = request.tool_choice
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise Refusal(
            400, f"tool_choice must be none, auto, required or a tool, got {choice!r}",
            param="tool_choice",
        )  # fmt: skip
    if isinstance(choice, Mapping) and not request.offered:
        raise Refusal(400, f"tool_choice names no tool of tools: {choice}", param="tool_choice")
    if request.top_logprobs and not request.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs=true", param="top_logprobs")


def _check_message(message: Message, place: str) -> None:
    role = message.get("role")
    if role not in ROLES:
        raise Refusal(
            400, f"role must be one of {', '.join(ROLES)}, got {role!r}", param=f"{place}.role"
        )
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Refusal(
                400, f"a call must hold a function with a name, got {call!r:.80}",
                param=f"{place}.tool_calls",
            )  # fmt: skip
    parts = message.get("content")
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Refusal(
                400, f"content may hold text only, got a part of type {kind!r}",
                param=f"{place}.content",
            )  # fmt: skip


class Turn(NamedTuple):
    """An assistant's message, and why it ended."""

    content: str | None
    calls: list[Call]
    finish_reason: Literal["stop", "length", "tool_calls"]


def as_turn(choice: Choice, request: ChatRequest) -> Turn:
    """Read an answer that is complete: its calls where tools were on offer, else its text."""
    text, reason = choice.text.known, choice.finish_reason or "stop"
    if not request.offered:
        return Turn(text, [], reason)
    parsed = parse_calls(text, request.offered_names)
    if not parsed.calls:
        return Turn(text, [], reason)
    calls = parsed.calls[:1] if request.parallel_tool_calls is False else parsed.calls
    return Turn(parsed.content or None, calls, "tool_calls")


class Sheet(NamedTuple):
    """What every piece of an answer says: its name, its time, its model."""

    id: str
    created: int
    model: str

    def head(self, kind: str) -> dict[str, object]:
        """Return the fields."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Wording(NamedTuple):
    """How tokens are written in an answer: with the tokenizer's own pieces of text."""

    sheet: Sheet
    request: ChatRequest
    tokenizer: Any

    def completion(self, reply: Reply) -> dict[str, object]:
        """Return the whole answer."""
        body = self.sheet.head("chat.completion")
        body["choices"] = [self._choice(choice) for choice in reply.choices]
        body["usage"] = usage(reply)
        if self.request.return_token_ids:
            body["prompt_token_ids"] = reply.prompt_ids
        return body

    def _choice(self, choice: Choice) -> dict[str, object]:
        turn = as_turn(choice, self.request)
        message: dict[str, Any] = {"role": "assistant", "content": turn.content, "refusal": None}
        if turn.calls:
            message["tool_calls"] = [
                wire_call(call, self.call_id(choice.index, place))
                for place, call in enumerate(turn.calls)
            ]
        return {
            "index": choice.index,
            "message": message,
            "finish_reason": turn.finish_reason,
            **self.tokens(choice.tokens),
        }

    def call_id(self, index: int, place: int) -> str:
        """Name a call: like no other one of this server."""
        return f"call_{self.sheet.id.removeprefix('chatcmpl-')}_{index}_{place}"

    def tokens(self, drawn: Sequence[Drawn]) -> dict[str, object]:
        """Return what the request wants to know of these tokens: logprobs, and ids."""
        wanted: dict[str, object] = {"logprobs": None}
        if self.request.logprobs:
            content = [
                self._logprob(token.token_id, token.logprob)
                | {"top_logprobs": [self._logprob(*each) for each in token.top]}
                for token in drawn
            ]
            wanted["logprobs"] = {"content": content, "refusal": None}
        if self.request.return_token_ids:
            wanted["token_ids"] = [token.token_id for token in drawn]
        return wanted

    def _logprob(self, token_id: int, logprob: float) -> dict[str, object]:
        text = self.tokenizer.decode([token_id])
        # A token that is part of a character has bytes, but no text to find them by.
        as_bytes = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": as_bytes}


def wire_call(call: Call, call_id: str) -> dict[str, object]:
    """Return a call in OpenAI's form."""
    function = {"name": call.name, "arguments": call.arguments_text()}
    return {"id": call_id, "type": "function", "function": function}


def usage(reply: Reply) -> dict[str, int]:
    """Count tokens: the prompt once, all answers, with the tokens that end them."""
    prompt = len(reply.prompt_ids)
    drawn = sum(len(choice.tokens) for choice in reply.choices)
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}
