"""The three wire formats that are understood, found by a request's path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from orbiter.train.capture.wire import anthropic as wire_anthropic
from orbiter.train.capture.wire import chat as wire_chat
from orbiter.train.capture.wire import responses as wire_responses
from orbiter.train.chat.reply import Fields, Json, Message, Reply

Part = msgspec.Raw | bytes
"""A piece of a conversation, as it was written."""


class Wire(NamedTuple):
    """How one API writes a conversation and its answer."""

    name: str
    turns: str
    """The field of a request to whose list a conversation adds its turns."""
    parts: Callable[[Fields], list[Part]]
    """The conversation in a request."""
    chat: Callable[[list[Json]], list[Message]]
    """Those pieces as messages in OpenAI's form."""
    tools: Callable[[Json], list[Message]]
    reply: Callable[[Json], Reply]
    assemble: Callable[[Iterable[Json]], Reply]
    """The reply that a stream's events make up."""
    terminal: tuple[bytes, ...]
    """What the last event of a stream holds."""


CHAT = Wire(
    "chat", "messages", wire_chat.parts, wire_chat.chat, wire_chat.tools, wire_chat.reply,
    wire_chat.assemble, wire_chat.TERMINAL,
)  # fmt: skip
RESPONSES = Wire(
    "responses", "input", wire_responses.parts, wire_responses.chat, wire_responses.tools,
    wire_responses.reply, wire_responses.assemble, wire_responses.TERMINAL,
)  # fmt: skip
MESSAGES = Wire(
    "messages", "messages", wire_anthropic.parts, wire_anthropic.chat, wire_anthropic.tools,
    wire_anthropic.reply, wire_anthropic.assemble, wire_anthropic.TERMINAL,
)  # fmt: skip

_BY_END = {"completions": CHAT, "responses": RESPONSES, "messages": MESSAGES}

NO_PARAMETERS = frozenset(
    ("messages", "input", "instructions", "system", "tools", "previous_response_id")
)
"""The fields of a request that are no parameters: they stand elsewhere in the item."""


def wire_of(method: str, path: str) -> Wire | None:
    """Return the format of a request to a model; None where it is none."""
    if method != "POST":
        return None
    before, _, last = path.rpartition("/")
    wire = _BY_END.get(last)
    return None if wire is CHAT and not before.endswith("/chat") else wire
