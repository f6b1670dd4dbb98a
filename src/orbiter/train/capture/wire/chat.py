"""Chat completions: OpenAI's, and what vLLM, SGLang, llama.cpp and our own server make of them."""

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
    tool_call,
    whole_numbers,
)
from orbiter.train.chat.transcript import render_call, text_of

TERMINAL = (b"\ndata: [DONE]", b"\ndata:[DONE]")
"""What the last event of a stream holds."""

_USAGE = {
    "input_tokens": ("prompt_tokens",),
    "output_tokens": ("completion_tokens",),
    "cached_tokens": ("prompt_tokens_details", "cached_tokens"),
    "reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
}
_TOKEN_ID = "token_id:"
"""What vLLM writes in the place of a token's text with `return_tokens_as_token_ids`."""


def parts(fields: Fields) -> list[msgspec.Raw | bytes]:
    """Return the conversation of a request, message by message."""
    return list(_LIST.decode(fields["messages"])) if "messages" in fields else []


def chat(messages: list[Json]) -> list[Message]:
    """Return messages in OpenAI's form, which these are."""
    return [message for message in messages if isinstance(message, dict)]


def tools(given: Json) -> list[Message]:
    """Return tools as JSON schemas, which these are."""
    return [tool for tool in given if isinstance(tool, dict)] if isinstance(given, list) else []


def reply(body: Json) -> Reply:
    """Read a whole response.

    Raises:
        Unreadable: it is no chat completion.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Unreadable(f"no chat completion: {str(body)[:120]}")
    first, *others = [_choice(choice, choice.get("message") or {}) for choice in choices]
    _head(first, body)
    first.others = [_in_words(other) for other in others]
    return first


def assemble(events: Iterable[Json]) -> Reply:
    """Put a stream's events together; what is missing at its end is noted as its error."""
    merged: dict[int, dict[str, Any]] = {}
    head: dict[str, Any] = {}
    error: str | None = None
    for event in events:
        if event.get("error"):
            error = str(event["error"])
        head |= {name: event[name] for name in _HEAD if event.get(name)}
        for choice in event.get("choices") or ():
            _merge(merged.setdefault(choice.get("index") or 0, {}), choice)
    whole = [_choice(merged[index], _message(merged[index])) for index in sorted(merged)]
    first = whole[0] if whole else Reply()
    _head(first, head)
    first.others = [_in_words(other) for other in whole[1:]]
    first.error = error
    return first


_HEAD = ("id", "model", "usage", "prompt_token_ids")
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def _head(answer: Reply, body: Json) -> None:
    answer.response_id, answer.model = body.get("id"), body.get("model")
    answer.usage = counts(body.get("usage"), _USAGE)
    answer.prompt_token_ids = whole_numbers(body.get("prompt_token_ids"))


def _choice(choice: Json, message: Json) -> Reply:
    said, calls = message.get, message.get("tool_calls")
    answer = Reply(
        text=text_of(said("content")) or text_of(said("refusal")),
        tool_calls=[_call(call) for call in calls] if calls else [],
        reasoning=text_of(said("reasoning_content") or said("reasoning")),
        finish_reason=choice.get("finish_reason"),
        token_ids=whole_numbers(choice.get("token_ids")),
    )
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if isinstance(content, list) and content:
        _take_logprobs(answer, content)
    return answer


def _take_logprobs(answer: Reply, content: list[Json]) -> None:
    answer.logprobs = [float(entry["logprob"]) for entry in content]
    tokens = [str(entry.get("token", "")) for entry in content]
    if answer.token_ids is None and all(token.startswith(_TOKEN_ID) for token in tokens):
        answer.token_ids = [int(token.removeprefix(_TOKEN_ID)) for token in tokens]
    if answer.token_ids is None or len(answer.token_ids) != len(tokens):
        answer.logprob_tokens = tokens


def _call(call: Json) -> Message:
    function = call.get("function") or {}
    return tool_call(call.get("id"), function.get("name"), function.get("arguments") or "")


def _in_words(answer: Reply) -> str:
    return "\n".join(filter(None, [answer.text, *map(render_call, answer.tool_calls)]))


def _merge(choice: dict[str, Any], piece: Json) -> None:
    """Add one event's part of a choice."""
    delta = piece.get("delta") or {}
    for name in ("content", "refusal", "reasoning_content", "reasoning"):
        if delta.get(name):
            choice.setdefault(name, []).append(delta[name])
    for call in delta.get("tool_calls") or ():
        _merge_call(choice.setdefault("calls", {}), call)
    if piece.get("finish_reason"):
        choice["finish_reason"] = piece["finish_reason"]
    if piece.get("token_ids"):
        choice.setdefault("token_ids", []).extend(piece["token_ids"])
    content = (piece.get("logprobs") or {}).get("content")
    if content:
        choice.setdefault("logprobs", {"content": []})["content"].extend(content)


def _merge_call(calls: dict[int, Message], piece: Json) -> None:
    index = piece.get("index")
    call = calls.setdefault(len(calls) if index is None else index, {"name": "", "arguments": []})
    function = piece.get("function") or {}
    call["id"] = piece.get("id") or call.get("id")
    call["name"] = function.get("name") or call["name"]
    call["arguments"].append(function.get("arguments") or "")


def _message(choice: dict[str, Any]) -> Message:
    message: Message = {
        name: "".join(choice[name])
        for name in ("content", "refusal", "reasoning_content", "reasoning")
        if name in choice
    }
    message["tool_calls"] = [
        tool_call(call["id"], call["name"], "".join(call["arguments"]))
        for _, call in sorted(choice.get("calls", {}).items())
    ]
    return message
