"""Chat completions as OpenAI, vLLM, SGLang, llama.cpp, gateways and our server send them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orbiter.train.chat.message import Json, Message, text_of
from orbiter.train.chat.reply import Fields, Reply, Unreadable, counts, decode, whole_numbers
from orbiter.train.chat.tool_calls import custom_call, function_call
from orbiter.train.chat.transcript import write_action

TERMINAL = (b"\ndata: [DONE]", b"\ndata:[DONE]")
"""Byte patterns, one of which is in the last event of a stream."""

_USAGE = {
    "input_tokens": ("prompt_tokens",),
    "output_tokens": ("completion_tokens",),
    "cached_tokens": ("prompt_tokens_details", "cached_tokens"),
    "reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
}
_TOKEN_ID = "token_id:"
"""The prefix that vLLM writes instead of a token's text with `return_tokens_as_token_ids`."""
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
"""Message fields whose deltas are concatenated."""


def accepts(fields: Fields, *, certain: bool) -> bool:  # noqa: ARG001 - the path is distinctive
    """Return whether a request has the shape of a chat completion request."""
    return are_messages(fields.get("messages"))


def are_messages(raw: msgspec.Raw | None) -> bool:
    """Return whether a field of a request is a list of objects that each have a role."""
    if raw is None:
        return False
    try:
        _WITH_ROLES.decode(raw)
    except msgspec.DecodeError:
        return False
    return True


def parts(fields: Fields) -> list[msgspec.Raw | bytes]:
    """Return the conversation of a request, message by message."""
    return list(_LIST.decode(fields["messages"])) if "messages" in fields else []


def chat(messages: list[Json]) -> list[Message]:
    """Return messages in OpenAI's form; a legacy `function_call` becomes a tool call."""
    return [_modern(message) for message in messages if isinstance(message, dict)]


def tools(given: Json) -> list[Message]:
    """Return tools as JSON schemas, which they already are."""
    return [tool for tool in given if isinstance(tool, dict)] if isinstance(given, list) else []


def reply(body: Json) -> Reply:
    """Parse a complete response.

    Raises:
        Unreadable: it is not a chat completion.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Unreadable(f"not a chat completion: {str(body)[:120]}")
    # The first choice is the answer; the others are kept as text.
    first, *more = [_choice(choice, choice.get("message") or {}) for choice in choices]
    _add_head(first, body)
    first.others = [write_action(choice.text, choice.tool_calls) for choice in more]
    return first


def assemble(events: Iterable[Json]) -> Reply:
    """Join a stream's events; if the end is missing, the reply's error says so."""
    merged: dict[int, _Growing] = {}
    head: dict[str, Any] = {}
    error: str | None = None
    for event in events:
        if event.get("error"):
            error = str(event["error"])
        head |= {name: event[name] for name in _HEAD if event.get(name)}
        # The last event of a stream may have no choices but the usage.
        for choice in event.get("choices") or ():
            # Choices of one request are interleaved, each with its index.
            merged.setdefault(choice.get("index") or 0, _Growing()).add(choice)
    whole = [_choice(growing.choice, growing.message()) for _, growing in sorted(merged.items())]
    first = whole[0] if whole else Reply()
    _add_head(first, head)
    first.others = [write_action(choice.text, choice.tool_calls) for choice in whole[1:]]
    first.error = error
    return first


_HEAD = ("id", "model", "usage", "prompt_token_ids")
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


class _WithRole(msgspec.Struct, gc=False):
    """A message decoded only as far as its role."""

    role: str


_WITH_ROLES = msgspec.json.Decoder(list[_WithRole])


def _modern(message: dict[str, Any]) -> Message:
    """Return a message with a legacy function call as a tool call; the call's id is its name."""
    given = message.get("function_call")
    if isinstance(given, dict):
        rest = {name: value for name, value in message.items() if name != "function_call"}
        name = given.get("name")
        # The old form has no id, and the tool's answer names the function.
        call = function_call(name, name, given.get("arguments"))
        return {**rest, "tool_calls": [*(rest.get("tool_calls") or ()), call]}
    if message.get("role") == "function":
        return {**message, "role": "tool", "tool_call_id": str(message.get("name") or "")}
    return message


def _add_head(answer: Reply, body: Json) -> None:
    answer.response_id, answer.model = body.get("id"), body.get("model")
    answer.usage = counts(body.get("usage"), _USAGE)
    answer.prompt_token_ids = whole_numbers(body.get("prompt_token_ids"))


def _choice(choice: Json, message: Json) -> Reply:
    field, calls = _modern(message).get, _modern(message).get("tool_calls")
    answer = Reply(
        # A refusal is what the model said, so it is the text.
        text=text_of(field("content")) or text_of(field("refusal")),
        tool_calls=[_call(call) for call in calls if isinstance(call, dict)] if calls else [],
        reasoning=text_of(field("reasoning_content") or field("reasoning")),
        finish_reason=choice.get("finish_reason"),
        token_ids=whole_numbers(choice.get("token_ids")),
    )
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if isinstance(content, list) and content:
        _add_logprobs(answer, content)
    return answer


def _add_logprobs(answer: Reply, content: list[Json]) -> None:
    answer.logprobs = [float(entry["logprob"]) for entry in content]
    tokens = [str(entry.get("token", "")) for entry in content]
    # Only if every token has the prefix: one real token could begin like it.
    if answer.token_ids is None and all(token.startswith(_TOKEN_ID) for token in tokens):
        answer.token_ids = [int(token.removeprefix(_TOKEN_ID)) for token in tokens]
    # Without ids the token texts are kept, to find the ids later.
    if answer.token_ids is None or len(answer.token_ids) != len(tokens):
        answer.logprob_tokens = tokens


def _call(call: dict[str, Any]) -> Message:
    """Return a call of a function or a custom tool; any other kind is returned unchanged."""
    if isinstance(custom := call.get("custom"), dict):
        return custom_call(call.get("id"), custom.get("name"), custom.get("input"))
    function = call.get("function")
    if not isinstance(function, dict):
        return (
            call
            if call.get("type", "function") != "function"
            else function_call(call.get("id"), call.get("name"), call.get("arguments") or "")
        )
    return function_call(call.get("id"), function.get("name"), function.get("arguments") or "")


class _Growing:
    """One choice of a stream, built up from its deltas."""

    def __init__(self) -> None:
        self.choice: dict[str, Any] = {}
        """The fields of a complete choice other than its message."""
        self._texts: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []
        """In order of appearance; "index" is the index in the stream."""
        self._function: dict[str, Any] | None = None

    def add(self, piece: Json) -> None:
        """Add one event's delta."""
        delta = piece.get("delta")
        if delta is None and not (self._texts or self._calls):
            delta = piece.get("message")  # some gateways put the whole message into one event
        for name in _TEXTS if delta else ():
            if text := text_of(delta.get(name)):
                self._texts.setdefault(name, []).append(text)
        for call in (delta or {}).get("tool_calls") or ():
            self._add_call(call)
        if isinstance(function := (delta or {}).get("function_call"), dict):
            self._function = _joined(self._function or {}, function)
        choice = self.choice
        if piece.get("finish_reason"):
            choice["finish_reason"] = piece["finish_reason"]
        if piece.get("token_ids"):
            choice.setdefault("token_ids", []).extend(piece["token_ids"])
        if content := (piece.get("logprobs") or {}).get("content"):
            choice.setdefault("logprobs", {"content": []})["content"].extend(content)

    def message(self) -> dict[str, Any]:
        """Return the message as a complete response would contain it."""
        message: dict[str, Any] = {name: "".join(texts) for name, texts in self._texts.items()}
        calls = self._calls
        # Sorted by index only if every server index is usable.
        if all(isinstance(call["index"], int) for call in calls):
            calls = sorted(calls, key=lambda call: call["index"])
        message["tool_calls"] = [
            {name: value for name, value in call.items() if name != "index"} for call in calls
        ]
        if self._function is not None:
            message["function_call"] = self._function
        return message

    def _add_call(self, piece: Json) -> None:
        """Add a delta to the call that it continues, or start a new one."""
        known = self._continued(piece)
        if known is None:
            self._calls.append(known := {"index": piece.get("index")})
        for name in ("id", "type"):
            # The first id stays: some servers send a new one with every delta.
            if piece.get(name) and not known.get(name):
                known[name] = piece[name]
        for name in ("function", "custom"):
            if isinstance(given := piece.get(name), dict):
                known[name] = _joined(known.get(name) or {}, given)

    def _continued(self, piece: Json) -> dict[str, Any] | None:
        """Return the call that a delta belongs to; None if it starts a new one.

        The index should decide, but servers get it wrong: some repeat 0 for every call, some omit
        it, some make up a new id for every delta. So a known id continues its call. Otherwise a
        delta continues the latest call with its index, unless it starts a new call: it has a name,
        and that is not the name of the call in progress.
        """
        index, call_id = piece.get("index"), piece.get("id")
        if call_id:
            for call in self._calls:
                # The index must not contradict the id, which some servers repeat.
                if call.get("id") == call_id and index in (None, call["index"]):
                    return call
        near = [call for call in self._calls if index is None or call["index"] == index]
        if not near:
            return None
        return None if _begins_call(piece, near[-1]) else near[-1]


def _begins_call(piece: Json, latest: dict[str, Any]) -> bool:
    """Return whether a delta starts a new call rather than continuing the latest one."""
    name, known = _name_in(piece), _name_in(latest)
    if not name or not known:
        return False
    # Two different ids with names are two calls.
    if piece.get("id") and latest.get("id"):
        return True
    # Without ids: servers may repeat the name in every delta of one call.
    return name != known or _is_complete(latest)


def _is_complete(call: dict[str, Any]) -> bool:
    """Return whether the arguments streamed so far are a complete JSON object."""
    arguments = (call.get("function") or {}).get("arguments", "")
    try:
        return isinstance(arguments, dict) or isinstance(decode(arguments.encode()), dict)
    except Unreadable:
        return False


def _joined(known: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """Add a delta of a function or custom tool to its known fields."""
    grown = dict(known)
    if piece.get("name"):
        grown["name"] = piece["name"]
    for name in ("arguments", "input"):
        given = piece.get(name)
        if isinstance(given, str):
            grown[name] = grown.get(name, "") + given
        elif given is not None:
            # a server that sends arguments as an object sends them whole, in one delta
            grown[name] = given
    return grown


def _name_in(piece: Json) -> str:
    for holder in (piece.get("function"), piece.get("custom")):
        if isinstance(holder, dict) and holder.get("name"):
            return str(holder["name"])
    return ""
