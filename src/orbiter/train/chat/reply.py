"""A model's answer in one form for all three APIs, and helpers for the JSON it comes in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from orbiter.train.chat.message import Json, Message
from orbiter.train.chat.tool_calls import input_of

Fields = dict[str, msgspec.Raw]
"""The top-level fields of a request's body, with each value as raw bytes."""


class Reply(msgspec.Struct, kw_only=True, gc=False):
    """One answer of a model."""

    text: str = ""
    tool_calls: list[Message] = []
    """Calls for the agent to execute."""
    server_calls: list[Json] = []
    """Calls that the API's server executed itself (a web search, say): name, arguments, and the
    original blocks of the answer in `raw`."""
    reasoning: str = ""
    """The model's reasoning, if it is given apart from the answer."""
    response_id: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] = {}
    """Token counts by "input_tokens" (cached ones included), "output_tokens", "cached_tokens",
    "cache_write_tokens" and "reasoning_tokens"."""
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    logprob_tokens: list[str] | None = None
    """The tokens of `logprobs` as text, if their ids are not given."""
    others: list[str] = []
    """The further answers if several were requested."""
    error: str | None = None
    """Why the answer is not complete."""
    pending: bool = False
    """Whether the answer is still being computed and must be fetched later."""
    redacted: bool = False
    """Whether a secret was removed from it."""

    def is_empty(self) -> bool:
        """Return whether the answer contains nothing at all."""
        return not (
            self.text
            or self.tool_calls
            or self.server_calls
            or self.reasoning
            or self.finish_reason
            or self.pending
        )

    def contains(self, text: str) -> bool:
        """Return whether a text occurs anywhere in it."""
        calls = [input_of(call) for call in self.tool_calls]
        texts = (self.text, self.reasoning, self.error or "", *calls, *self.others)
        if any(text in part for part in texts):
            return True
        return bool(self.server_calls) and text in msgspec.json.encode(self.server_calls).decode()

    def as_message(self) -> dict[str, Any]:
        """Return the answer as the message that continues the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


class Unreadable(Exception):  # noqa: N818 - becomes a note in the episode and never leaves it
    """The body of a request or response does not have the form that its URL path implies."""


def decode(raw: bytes | msgspec.Raw) -> Json:
    """Parse JSON; half a surrogate pair in it becomes U+FFFD."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        # Only after a failure: the search over every answer would take longer than decoding it.
        mended = _HALF_PAIR.sub(rb"\\ufffd", bytes(raw))
    try:
        return msgspec.json.decode(mended)
    except msgspec.DecodeError as error:
        raise Unreadable(f"not JSON ({error}): {bytes(raw)[:80]!r}") from None


def decode_fields(body: bytes) -> Fields:
    """Return a request's top-level fields.

    Raises:
        Unreadable: it is not a JSON object.
    """
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"the request is not a JSON object ({error})") from None


def whole_numbers(value: Json) -> list[int] | None:
    """Return a list of token ids; None if the value is not one."""
    if isinstance(value, list) and value and {type(inner) for inner in value} == {int}:
        return value
    return None


def counts(usage: Json, names: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Return the token counts that a `usage` object holds, each by its path in the object."""
    known: dict[str, int] = {}
    if not isinstance(usage, dict):
        return known
    for ours, (name, *within) in names.items():
        value = usage.get(name)
        if within and value is not None:
            value = value.get(*within) if isinstance(value, dict) else None
        # Not isinstance: True is an int, and a broken server may send it.
        if type(value) is int:
            known[ours] = value
    return known


_FIELDS = msgspec.json.Decoder(Fields)
# The first half (D800 to DBFF) without a second, or a second half (DC00 to DFFF) without a first.
# Two backslashes are an escaped backslash, and no escape follows.
_HALF_PAIR = re.compile(
    rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
