"""The three supported APIs, recognised by host, path and the shape of the body."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec

from orbiter.train.capture.wire import anthropic as wire_anthropic
from orbiter.train.capture.wire import chat as wire_chat
from orbiter.train.capture.wire import responses as wire_responses
from orbiter.train.chat.message import Json, Message
from orbiter.train.chat.reply import Fields, Reply

Part = msgspec.Raw | bytes
"""One piece of a conversation as raw bytes."""


class Accepts(Protocol):
    """Returns whether a request's body has the shape that its API requires."""

    def __call__(self, fields: Fields, *, certain: bool) -> bool:
        """Check the top level; `certain` if host and path alone identify the API."""


class Wire(NamedTuple):
    """How one API encodes a conversation and its answer."""

    name: str
    turns: str
    """The request field whose list grows with each turn."""
    accepts: Accepts
    parts: Callable[[Fields], list[Part]]
    """Extracts the conversation from a request."""
    chat: Callable[[list[Json]], list[Message]]
    """Converts those pieces to messages in OpenAI's form."""
    tools: Callable[[Json], list[Message]]
    reply: Callable[[Json], Reply]
    assemble: Callable[[Iterable[Json]], Reply]
    """Builds the reply from a stream's events."""
    terminal: tuple[bytes, ...]
    """Byte patterns, one of which is in the last event of a stream."""


CHAT = Wire(
    "chat", "messages", wire_chat.accepts, wire_chat.parts, wire_chat.chat, wire_chat.tools,
    wire_chat.reply, wire_chat.assemble, wire_chat.TERMINAL,
)  # fmt: skip
RESPONSES = Wire(
    "responses", "input", wire_responses.accepts, wire_responses.parts, wire_responses.chat,
    wire_responses.tools, wire_responses.reply, wire_responses.assemble, wire_responses.TERMINAL,
)  # fmt: skip
MESSAGES = Wire(
    "messages", "messages", wire_anthropic.accepts, wire_anthropic.parts, wire_anthropic.chat,
    wire_anthropic.tools, wire_anthropic.reply, wire_anthropic.assemble, wire_anthropic.TERMINAL,
)  # fmt: skip

NO_PARAMETERS = frozenset(
    ("messages", "input", "instructions", "system", "tools", "previous_response_id", "conversation")
)
"""Request fields that the item does not store among its parameters."""

_BY_END = {"responses": RESPONSES, "messages": MESSAGES}
# A leading dot marks a suffix: Azure gives every customer a host.
_MODEL_HOSTS = ("api.openai.com", "api.anthropic.com", ".openai.azure.com", "openrouter.ai")
"""Hosts, or host suffixes, that serve only models."""


class Recognised(NamedTuple):
    """A request that may go to a model."""

    wire: Wire
    certain: bool
    """Whether host and path alone identify the API; if not, the body must."""
    retrieves: str | None = None
    """The response id, if the request fetches an existing response instead of a new one."""


def recognise(method: str, host: str, path: str) -> Recognised | None:
    """Return the API of a request by its address; None if it does not go to a model.

    Whether it really is a model request also depends on its body: see `Wire.accepts`.
    """
    # By the end of the path, since gateways put prefixes before it.
    before, _, last = path.rstrip("/").rpartition("/")
    known = host in _MODEL_HOSTS or host.endswith(tuple(h for h in _MODEL_HOSTS if h[0] == "."))
    if method == "GET":
        within, _, resource = before.rpartition("/")
        if resource != "responses" or not last:
            return None
        # /responses/ID is also a common path of other services, so the prefix must fit.
        theirs = known or within.endswith(("/v1", "/openai"))
        return Recognised(RESPONSES, certain=True, retrieves=last) if theirs else None
    if method == "POST" and last == "completions" and before.endswith("/chat"):
        return Recognised(CHAT, certain=True)
    # Other services have such paths too; then the body must decide.
    if method == "POST" and last in _BY_END:
        certain = known or before.endswith(("/v1", "/openai"))
        return Recognised(_BY_END[last], certain=certain)
    return None
