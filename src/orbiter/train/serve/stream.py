"""Stream a growing answer: yields the new parts that may be sent, whichever API sends them.

Text is sent as soon as it is final: its characters are complete, and no stop text or tool call can
have begun in it. Calls are sent when they are complete. Every drawn token is in exactly one piece.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from orbiter.train.chat.tool_calls import settled
from orbiter.train.serve.asked import ChatRequest, FinishedAnswer, Refusal, finished
from orbiter.train.serve.reply import DrawnToken, GrowingAnswer, GrowingReply


class News(NamedTuple):
    """The new part of one answer."""

    choice: GrowingAnswer
    text: str
    tokens: list[DrawnToken]
    """The tokens drawn since the previous piece."""
    done: FinishedAnswer | None
    """The whole answer if this is the last piece; otherwise None."""


class Writer(Protocol):
    """Writes one reply in the form of one API."""

    def whole(self) -> dict[str, object]:
        """Return the whole answer."""

    def opening(self) -> list[bytes]:
        """Begin a stream."""

    def news(self, news: News) -> list[bytes]:
        """Write the new part of an answer."""

    def closing(self) -> list[bytes]:
        """End a stream."""

    def failed(self, refusal: Refusal) -> list[bytes]:
        """End a stream with an error."""


@dataclass(slots=True)
class _Sent:
    """How much of an answer has been sent."""

    characters: int = 0
    tokens: int = 0
    over: bool = False


async def events(
    reply: GrowingReply,
    request: ChatRequest,
    writer: Writer,
    *,
    refusal: Callable[[Exception], Refusal],
    at_end: Callable[[], None] = lambda: None,
) -> AsyncIterator[bytes]:
    """Yield the stream until the answer is complete or the client leaves; errors are events too.

    `at_end` is called once or twice: before the last piece is sent, and when the stream ends.
    """
    sent = [_Sent() for _ in reply.choices]
    try:
        # Events are sent before the first token, so that clients see the stream open.
        for piece in writer.opening():
            yield piece
        over = False
        while not over:
            await reply.changed()
            over = reply.done
            if over:
                # Before the last piece is sent: a client may send its next request as soon as it
                # has it.
                at_end()
            for piece in _pieces(reply, sent, request, writer):
                yield piece
        for piece in writer.closing():
            yield piece
    except Exception as error:
        # the status has been sent already, so the stream itself must carry the error
        for piece in writer.failed(refusal(error)):
            yield piece
    finally:
        # Also when the generator is closed because the client left.
        reply.leave()
        at_end()


def event(body: object, name: str | None = None) -> bytes:
    """Write a server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + msgspec.json.encode(body) + b"\n\n"


def _pieces(
    reply: GrowingReply, sent: list[_Sent], request: ChatRequest, writer: Writer
) -> Iterator[bytes]:
    for choice in reply.choices:
        news = _news(choice, sent[choice.index], request)
        if news is not None:
            yield from writer.news(news)


def _news(choice: GrowingAnswer, sent: _Sent, request: ChatRequest) -> News | None:
    """Return the unsent part of an answer that may be sent now; None if it is empty."""
    if sent.over:
        return None
    done = None
    if choice.finish_reason is not None:
        sent.over, done = True, finished(choice, request)
        # At the end all remaining text is final, also what might have begun a call.
        fresh = (done.content or "")[sent.characters :]
    else:
        end = choice.text.settled()
        # Text that may be the beginning of a call is held back until it is clear.
        if names := request.offered_names:
            end = min(end, settled(choice.text.known, names))
        fresh = choice.text.known[sent.characters : end]
        if not fresh:
            return None
        sent.characters = end
    tokens = choice.tokens[sent.tokens :]
    # Tokens drawn while text was held back go out with the next text.
    sent.tokens = len(choice.tokens)
    return News(choice, fresh, tokens, done)
