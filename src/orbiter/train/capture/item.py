"""From an exchange that is over to the item that is kept of it.

state, messages, tools     what the model was asked
action, tool_calls         what it answered; `action` as `render.py` says
prompt_token_ids, token_ids, logprobs      where the server gives them
metadata                   api, model, response_id, finish_reason, params, seconds, and where
                           there is something to say: input_tokens, output_tokens,
                           cached_tokens, reasoning_tokens, stream, first_token_seconds,
                           reasoning, error, failed_attempts, other_answers, logprobs and
                           logprob_tokens (without token ids), redacted, tool_runs, branch,
                           parent_episode, episode_error
"""

from __future__ import annotations

from typing import NamedTuple

from orbiter.train.capture.conversation import Conversation
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.redact import Cleaner
from orbiter.train.capture.wire.events import events
from orbiter.train.chat.reply import Json, Reply, decode
from orbiter.train.chat.transcript import render_action
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import from_values


class Attempt(NamedTuple):
    """A request to a model that brought no answer."""

    status: int
    """Of HTTP; 0 where no whole response came."""
    error: str


def read(exchange: Exchange, body: bytes, error: str | None) -> Reply:
    """Read what was answered; a reply that broke off carries its error.

    Raises:
        Unreadable: it is not what its path promises.
    """
    if exchange.unpack is not None:
        body = exchange.unpack(body)
    if exchange.status >= 400 or not body:
        return Reply(error=error or _failure(exchange.status, body))
    if not exchange.streamed:
        return exchange.wire.reply(decode(body))
    reply = exchange.wire.assemble(events(body))
    if reply.finish_reason is None and reply.error is None:
        reply.error = error or "the stream ended before the answer did"
    return reply


def item_of(
    talk: Conversation,
    reply: Reply,
    *,
    task_id: str | None,
    episode_id: str,
    step: int,
    agent: str | None,
    timestamp: float,
    metadata: dict[str, Json],
) -> TrajectoryItem:
    """Return the item of a call; all of it came out of JSON, so nothing is checked again."""
    logprobs = reply.logprobs if reply.logprob_tokens is None else None
    return from_values(
        (
            talk.state, render_action(reply), None, metadata, task_id, episode_id,
            step, agent, talk.messages, talk.tools, reply.tool_calls or None, None,
            timestamp, reply.prompt_token_ids, reply.token_ids, logprobs,
        )
    )  # fmt: skip


def metadata_of(
    exchange: Exchange, talk: Conversation, reply: Reply, failed: list[Attempt]
) -> dict[str, Json]:
    """Return what is known of a call beside its texts."""
    found: dict[str, Json] = {
        "api": exchange.wire.name,
        "model": reply.model,
        "response_id": reply.response_id,
        "finish_reason": reply.finish_reason,
        **reply.usage,
        "seconds": round(exchange.seconds, 6),
        "params": talk.params,
        "reasoning": reply.reasoning or None,
        "error": reply.error,
        "failed_attempts": [attempt._asdict() for attempt in failed] if failed else None,
        "other_answers": reply.others or None,
        "redacted": talk.redacted or reply.redacted or None,
    }
    if exchange.streamed:
        first = exchange.first_token_seconds or 0.0
        found |= {"stream": True, "first_token_seconds": round(first, 6)}
    if reply.logprob_tokens is not None:
        found |= {"logprobs": reply.logprobs, "logprob_tokens": reply.logprob_tokens}
    return {name: value for name, value in found.items() if value is not None}


def cleaned(reply: Reply, clean: Cleaner, *, prompt_too: bool) -> Reply:
    """Take the secrets out of a reply; ids of tokens that spell them go with them."""
    if prompt_too:
        reply.prompt_token_ids = None
    said = (reply.text, reply.tool_calls, reply.reasoning, reply.others, reply.error)
    value, changed = clean([*said])
    reply.text, reply.tool_calls, reply.reasoning, reply.others, reply.error = value
    if changed:
        reply.redacted = True
        reply.token_ids = reply.logprobs = reply.logprob_tokens = None
    return reply


def _failure(status: int, body: bytes) -> str:
    said = body[:500].decode("utf-8", "replace")
    return f"HTTP {status}: {said}" if status >= 400 else "an empty response"
