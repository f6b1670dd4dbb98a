"""A request to the model in one form for all APIs, and the reasons to refuse a request.

Each API's settings are an allow-list. A setting that is unknown, or known and not supported with a
value that would change the answer, is refused by a server, and dropped in training, where the
trainer's settings apply; it is never silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import WrittenCall, parse_calls
from orbiter.train.engine.prompt import ROLES
from orbiter.train.serve.reply import DrawnToken, GrowingAnswer

MaxTokens = Annotated[int, Meta(ge=1)] | None
Tokenizer = Any
"""A tokenizer of Hugging Face, whose classes have no types."""
T = TypeVar("T")

SAMPLING = ("temperature", "top_p", "seed")
"""Settings of the distribution that answers are drawn from."""
SMALLEST = 1e-5
"""Smallest temperature other than 0, and smallest top_p: float32 cannot represent the result of
less."""
MOST_STOPS = 64
"""The maximum number of stop texts in a request."""


class StreamOptions(msgspec.Struct):
    """What a stream contains in addition to the answer."""

    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A conversation to answer, in the form of chat completions; the defaults are OpenAI's.

    null counts as absent.
    """

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
        """The maximum length of the answer, under either of its names."""
        # OpenAI renamed it; clients of either age are served.
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that may be called: none, all, or the one that `tool_choice` names."""
        if not self.tools or self.tool_choice == "none":
            return []
        if not isinstance(self.tool_choice, Mapping):
            return self.tools
        function = self.tool_choice.get("function")
        chosen = function.get("name") if isinstance(function, Mapping) else None
        return [tool for tool in self.tools if tool["function"]["name"] == chosen]

    @property
    def offered_names(self) -> list[str]:
        """The names of the tools that may be called."""
        return [tool["function"]["name"] for tool in self.offered]

    @property
    def chat(self) -> list[Message]:
        """The messages with the roles that chat templates know, and only the fields they read."""
        return [
            {name: message[name] for name in _READ if name in message}
            | {"role": ROLES[message["role"]]}
            for message in self.messages
        ]


_READ = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


class Refusal(Exception):  # noqa: N818 - it is an answer, in OpenAI's words
    """A request that gets no answer: status and error body."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        """Describe what was wrong; `param` is the request's field."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def kind(self) -> str:
        """The type of error, in the words that OpenAI and Anthropic share."""
        kinds = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }
        kind = "server_error" if self.status >= 500 else kinds.get(self.status)
        return kind or "invalid_request_error"

    def body(self) -> dict[str, object]:
        """Return the response body, in OpenAI's form."""
        detail = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": detail}


class ParsedRequest(NamedTuple):
    """A request, and the names of its settings that have no effect."""

    request: ChatRequest
    dropped: list[str]


def decode(body: bytes) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        Refusal: 400.
    """
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Refusal(400, f"the body must be a JSON object, got {type(fields).__name__}")
    return fields


def convert(fields: Mapping[str, Any], kind: type[T]) -> T:
    """Convert fields to a request.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        # msgspec's message ends in the place, such as "- at `$.messages[0]`".
        problem, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        where = f" in {param}" if param else ""
        raise Refusal(400, f"{problem}{where}", param=param) from error


def drop_unsupported(
    fields: dict[str, Any], allowed: Mapping[str, Sequence[object] | None], *, lenient: bool
) -> list[str]:
    """Remove the settings that this server does not support, and return their names.

    Args:
        fields: The request.
        allowed: The known fields. A list holds the values of an unsupported setting that have no
            effect; None allows every value.
        lenient: Drop what is not supported instead of refusing it, and the sampling settings,
            whatever their values: those of the trainer apply.

    Raises:
        Refusal: 400, unless `lenient`.
    """
    dropped = []
    for name in list(fields):
        value = fields[name]
        # An unknown setting has no value that would leave the answer unchanged.
        neutral = allowed.get(name, ())
        if lenient and name in SAMPLING and value is not None:
            dropped.append(name)
            del fields[name]
            continue
        if neutral is None or value is None or value in neutral:
            continue
        if not lenient:
            shown = f"{name:.80}={value!r:.80}"
            raise Refusal(400, f"{shown} is not supported by this server", param=name[:80])
        dropped.append(name)
        del fields[name]
    return dropped


def check_request(request: ChatRequest) -> None:
    """Check the constraints that the types do not express.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    for name in ("temperature", "top_p"):
        value = getattr(request, name)
        # 0 is allowed for the temperature: it means greedy.
        if value and value < SMALLEST:
            least = f"0 or at least {SMALLEST}" if name == "temperature" else f"at least {SMALLEST}"
            raise Refusal(400, f"{name} must be {least}, got {value}", param=name)
    if len(request.stops) > MOST_STOPS:
        raise Refusal(
            400, f"stop may hold {MOST_STOPS} texts, got {len(request.stops)}", param="stop"
        )
    _check_tools(request)
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")


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


def _check_message(message: Message, path: str) -> None:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refusal(
            400, f"role must be one of {', '.join(ROLES)}, got {role!r:.80}", param=f"{path}.role"
        )
    for name in ("name", "tool_call_id", "reasoning_content"):
        _check_text(message, name, path)
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise Refusal(
            400, f"tool_calls must be a list of calls, got {calls!r:.80}",
            param=f"{path}.tool_calls",
        )  # fmt: skip
    for index, call in enumerate(calls or ()):
        _check_call(call, f"{path}.tool_calls[{index}]")
    parts = message.get("content")
    if not isinstance(parts, str | list | None):
        raise Refusal(
            400, f"content must be text or a list of parts, got {parts!r:.80}",
            param=f"{path}.content",
        )  # fmt: skip
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Refusal(
                400, f"content may hold text only, got a part of type {kind!r:.80}",
                param=f"{path}.content",
            )  # fmt: skip


def _check_call(call: object, path: str) -> None:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refusal(
            400, f"a call must hold a function with a name, got {call!r:.80}",
            param=path.rpartition("[")[0],
        )  # fmt: skip
    if not isinstance(function.get("arguments"), str | dict | None):
        raise Refusal(
            400, f"a call's arguments must be JSON text, got {function['arguments']!r:.80}",
            param=f"{path}.function.arguments",
        )  # fmt: skip
    if isinstance(call, Mapping):
        _check_text(call, "id", path)


def _check_text(holder: Mapping[str, Any], name: str, path: str) -> None:
    if not isinstance(holder.get(name), str | None):
        raise Refusal(400, f"{name} must be text, got {holder[name]!r:.80}", param=f"{path}.{name}")


class FinishedAnswer(NamedTuple):
    """A complete answer, split into text and calls."""

    content: str | None
    calls: list[WrittenCall]
    finish_reason: Literal["stop", "length", "tool_calls"]


def finished(choice: GrowingAnswer, request: ChatRequest) -> FinishedAnswer:
    """Split a complete answer into text and calls; without offered tools it is all text."""
    text, reason = choice.text.known, choice.finish_reason or "stop"
    if not request.offered:
        return FinishedAnswer(text, [], reason)
    parsed = parse_calls(text, request.offered_names)
    if not parsed.calls:
        return FinishedAnswer(text, [], reason)
    # The model cannot be kept from writing several, so all but the first are left out.
    calls = parsed.calls[:1] if request.parallel_tool_calls is False else parsed.calls
    # OpenAI sends null, not an empty text, beside calls.
    return FinishedAnswer(parsed.content or None, calls, "tool_calls")


class SharedFields(NamedTuple):
    """The fields that every piece of an answer repeats: key, time, and model."""

    key: str
    """Unique hexadecimal digits, from which the ids of the answer and of its calls are made."""
    created: int
    model: str

    def call_id(self, index: int, call: int) -> str:
        """Return a unique id for a call."""
        return f"call_{self.key}_{index}_{call}"


def as_message(done: FinishedAnswer, shared: SharedFields, index: int) -> Message:
    """Return an answer as the message with which the conversation continues."""
    message: dict[str, Any] = {"role": "assistant", "content": done.content}
    if done.calls:
        message["tool_calls"] = [
            wire_call(call, shared.call_id(index, position))
            for position, call in enumerate(done.calls)
        ]
    return message


def wire_call(call: WrittenCall, call_id: str) -> dict[str, object]:
    """Return a call in the form of chat completions."""
    function = {"name": call.name, "arguments": call.arguments_text()}
    return {"id": call_id, "type": "function", "function": function}


def count_drawn(choices: Sequence[GrowingAnswer]) -> int:
    """Count the tokens of all answers, with the tokens that end them."""
    return sum(len(choice.tokens) for choice in choices)


def token_ids_of(drawn: Sequence[DrawnToken]) -> list[int]:
    """Return the ids of drawn tokens."""
    return [token.token_id for token in drawn]
