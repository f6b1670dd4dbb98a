"""The APIs that the server speaks, chosen by a request's path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from orbiter.train.serve import chat, messages, responses
from orbiter.train.serve.asked import ChatRequest, ParsedRequest, Refusal, SharedFields
from orbiter.train.serve.reply import GrowingReply
from orbiter.train.serve.stream import Writer


class Parse(Protocol):
    """Parses a request."""

    def __call__(self, body: bytes, *, lenient: bool = False) -> ParsedRequest:
        """Parse or refuse it; `lenient` drops settings that are not supported."""


class Dialect(NamedTuple):
    """How one API writes requests and answers."""

    path: str
    """The API's path on the server; clients of other providers may put any prefix before it."""
    parse: Parse
    writer: Callable[[GrowingReply, ChatRequest, SharedFields, Any], Writer]
    refused: Callable[[Refusal], dict[str, object]]
    """The body of an error."""


DIALECTS = (
    Dialect("/chat/completions", chat.parse, chat.ChatWriter, Refusal.body),
    Dialect("/responses", responses.parse, responses.ResponsesWriter, Refusal.body),
    Dialect("/messages", messages.parse, messages.MessagesWriter, messages.error_body),
)


def dialect_of(path: str) -> Dialect | None:
    """Return the API of a path, or None if no model API has this path."""
    return next((each for each in DIALECTS if path.endswith(each.path)), None)
