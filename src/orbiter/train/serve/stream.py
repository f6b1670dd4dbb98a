"""The answer in pieces, as server-sent events.

Text goes out as soon as nothing can take it back: a character is whole, no stop text has begun,
no tool call has. Calls are sent when they are complete. Every token that was drawn is in exactly
one piece. Left out: the pieces' common fields (`protocol.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import settled
from orbiter.train.serve.protocol import Refusal, Wording, as_turn, usage, wire_call
from orbiter.train.serve.reply import Choice, Reply

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Sent:
    """How much of an answer has gone out."""

    characters: int = 0
    tokens: int = 0
    over: bool = False


async def events(reply: Reply, wording: Wording) -> AsyncIterator[bytes]:
    """Yield the pieces until the answer is complete or nobody listens; errors are pieces too."""
    pieces = Pieces(reply, wording)
    try:
        for choice in reply.choices:
            yield pieces.opening(choice)
        while not reply.done:
            await reply.changed()
            for choice in reply.choices:
                for piece in pieces.news(choice):
                    yield piece
        options = wording.request.stream_options
        if options is not None and options.include_usage:
            yield pieces.usage()
        yield DONE
    except Exception as error:  # the status has gone out: the stream itself must say it
        yield _event(Refusal(500, f"{type(error).__name__}: {error}").body())
    finally:
        reply.leave()


class Pieces:
    """Makes the pieces of one reply."""

    def __init__(self, reply: Reply, wording: Wording) -> None:
        """Nothing has gone out yet."""
        self._reply, self._wording = reply, wording
        self._head = wording.sheet.head("chat.completion.chunk")
        options = wording.request.stream_options
        self._usage = {"usage": None} if options is not None and options.include_usage else {}
        self._sent = [Sent() for _ in reply.choices]

    def opening(self, choice: Choice) -> bytes:
        """Begin an answer."""
        return self._piece(choice, {"role": "assistant", "content": ""}, opening=True)

    def news(self, choice: Choice) -> list[bytes]:
        """Return what may go out of an answer that was not sent before."""
        sent = self._sent[choice.index]
        if sent.over:
            return []
        if choice.finish_reason is not None:
            return self._ending(choice)
        end = choice.text.settled()
        if names := self._wording.request.offered_names:
            end = min(end, settled(choice.text.known, names))
        fresh = choice.text.known[sent.characters : end]
        if not fresh:
            return []
        sent.characters = end
        return [self._piece(choice, {"content": fresh})]

    def usage(self) -> bytes:
        """Return the last piece where the request wants to know how many tokens it was."""
        return _event({**self._head, "choices": [], "usage": usage(self._reply)})

    def _ending(self, choice: Choice) -> list[bytes]:
        """Send the rest: text, calls, and why it ended."""
        sent, turn = self._sent[choice.index], as_turn(choice, self._wording.request)
        sent.over = True
        deltas: list[Message] = []
        if rest := (turn.content or "")[sent.characters :]:
            deltas.append({"content": rest})
        for place, call in enumerate(turn.calls):
            named = wire_call(call, self._wording.call_id(choice.index, place))
            deltas.append({"tool_calls": [{"index": place, **named}]})
        pieces = [self._piece(choice, delta) for delta in deltas]
        return [*pieces, self._piece(choice, {}, finish_reason=turn.finish_reason)]

    def _piece(
        self,
        choice: Choice,
        delta: Message,
        *,
        finish_reason: str | None = None,
        opening: bool = False,
    ) -> bytes:
        """Write a piece, with the tokens drawn since the one before."""
        sent = self._sent[choice.index]
        tokens = choice.tokens[sent.tokens :]
        sent.tokens = len(choice.tokens)
        part = {"index": choice.index, "delta": delta, "finish_reason": finish_reason}
        part |= self._wording.tokens(tokens)
        body = {**self._head, "choices": [part], **self._usage}
        if opening and self._wording.request.return_token_ids:
            body["prompt_token_ids"] = self._reply.prompt_ids
        return _event(body)


def _event(body: object) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
