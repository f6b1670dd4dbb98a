"""What a model answered, in one form for all three wire formats; and the JSON they come in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

Json = Any
"""What came out of JSON."""
Message = dict[str, Any]
"""One message of a chat, in OpenAI's form."""
Fields = dict[str, msgspec.Raw]
"""A request's body: its top level, each value still as it was written."""


class Reply(msgspec.Struct, kw_only=True, gc=False):
    """One answer of a model: a `Struct`, for a call of a model makes one, and more."""

    text: str = ""
    tool_calls: list[Message] = []
    reasoning: str = ""
    """What the model thought aloud, where it is given apart from the answer."""
    response_id: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] = {}
    """Tokens, by "input_tokens", "output_tokens", "cached_tokens" and "reasoning_tokens"."""
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    logprob_tokens: list[str] | None = None
    """The tokens of `logprobs` as text, where their ids are not given."""
    others: list[str] = []
    """The answers beside the first where several were asked for."""
    error: str | None = None
    """Why the answer is not whole."""
    redacted: bool = False
    """Whether something was taken out of it."""

    def is_empty(self) -> bool:
        """Say whether nothing at all was answered."""
        return not (self.text or self.tool_calls or self.reasoning or self.finish_reason)

    def says(self, text: str) -> bool:
        """Say whether a text stands anywhere in it."""
        calls = [call["function"]["arguments"] for call in self.tool_calls]
        said = (self.text, self.reasoning, self.error or "", *calls, *self.others)
        return any(text in part for part in said)

    def as_message(self) -> Message:
        """Return the answer as the conversation goes on with it."""
        message: Message = {"role": "assistant", "content": self.text or None}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


class Unreadable(Exception):  # noqa: N818 - becomes a note in the episode, and never leaves it
    """A body that is not what its path promises."""


def tool_call(call_id: object, name: object, arguments: object) -> Message:
    """Return a call of a tool in OpenAI's form: its arguments are a text of JSON."""
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return {
        "id": str(call_id or ""),
        "type": "function",
        "function": {"name": str(name or ""), "arguments": arguments},
    }


def decode(raw: bytes | msgspec.Raw) -> Json:
    """Return what a JSON text holds; half a surrogate pair in it becomes U+FFFD."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        mended = _HALF_PAIR.sub(rb"\\ufffd", bytes(raw))
    try:
        return msgspec.json.decode(mended)
    except msgspec.DecodeError as error:
        raise Unreadable(f"no JSON ({error}): {bytes(raw)[:80]!r}") from None


def decode_fields(body: bytes) -> Fields:
    """Return a request's top level.

    Raises:
        Unreadable: it is no JSON object.
    """
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"the request is no JSON object ({error})") from None


def whole_numbers(value: Json) -> list[int] | None:
    """Return a list of token ids, or None where it is none."""
    if isinstance(value, list) and value and {type(inner) for inner in value} == {int}:
        return value
    return None


def counts(usage: Json, names: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Return the token counts that a `usage` object holds, each found along its path."""
    found: dict[str, int] = {}
    if not isinstance(usage, dict):
        return found
    for ours, (name, *within) in names.items():
        value = usage.get(name)
        if within and value is not None:
            value = value.get(*within) if isinstance(value, dict) else None
        if type(value) is int:
            found[ours] = value
    return found


_FIELDS = msgspec.json.Decoder(Fields)
_HALF_PAIR = re.compile(
    rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
