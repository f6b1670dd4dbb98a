"""Turn a finished exchange into an item.

state, messages, tools     the input of the model
action, tool_calls         its answer; the texts are in the form of `chat/transcript.py`
prompt_token_ids, token_ids, logprobs      if the server returns them
metadata                   api, model, response_id, finish_reason, params, seconds, and those
                           of these that apply: input_tokens (cached ones included),
                           output_tokens, cached_tokens, cache_write_tokens,
                           reasoning_tokens, stream, first_token_seconds, reasoning,
                           server_calls, error, failed_attempts, other_answers, logprobs and
                           logprob_tokens (without token ids), redacted, tool_runs, branch,
                           parent_episode, episode_error, history_missing (the response or
                           conversation that the request continues, if it was not captured)
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from orbiter.train.capture.conversation import RequestHistory
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.redact import Cleaner
from orbiter.train.capture.wire.events import events, is_event_stream
from orbiter.train.chat.message import Json
from orbiter.train.chat.reply import Reply, decode
from orbiter.train.chat.transcript import write_action
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import from_values


class UnansweredRequest(NamedTuple):
    """A model request that got no answer."""

    status: int
    """HTTP status; 0 if no complete response arrived."""
    error: str


def read(exchange: Exchange, body: bytes, error: str | None) -> Reply:
    """Parse an answer; an interrupted one carries its error.

    Raises:
        Unreadable: the body is not what the path promises.
    """
    if exchange.status >= 400 or not body:
        return Reply(error=error or _failure(exchange.status, body))
    # Some servers stream although the request did not ask for it.
    if not (exchange.streamed or is_event_stream(body)):
        return exchange.wire.reply(decode(body))
    reply = exchange.wire.assemble(events(body))
    # Some servers end a stream without a finish reason; its last mark shows that it is complete.
    ended = any(mark in b"\n" + body for mark in exchange.wire.terminal)
    if reply.finish_reason is None and reply.error is None and not ended:
        reply.error = error or "the stream ended before the answer did"
    if reply.is_empty() and reply.error is None:
        reply.error = error or "the stream ended without an answer"
    return reply


def item_of(
    talk: RequestHistory,
    reply: Reply,
    *,
    episode_id: str,
    step: int,
    metadata: dict[str, Json],
    task_id: str | None = None,
    agent: str | None = None,
    timestamp: float | None = None,
) -> TrajectoryItem:
    """Return the item of a call; its values come from JSON, so they are not checked again."""
    # Without token ids they cannot be aligned with any, so they go to the metadata with their
    # texts.
    logprobs = reply.logprobs if reply.logprob_tokens is None else None
    return from_values(
        (
            talk.state, write_action(reply.text, reply.tool_calls), None, metadata, task_id,
            episode_id, step, agent, talk.messages, talk.tools, reply.tool_calls or None, None,
            timestamp, reply.prompt_token_ids, reply.token_ids, logprobs,
        )
    )  # fmt: skip


def completed(waiting: TrajectoryItem, complete: TrajectoryItem) -> TrajectoryItem:
    """Return the item of an incomplete response, with the complete answer filled in."""
    kept = {name: value for name, value in waiting.metadata.items() if name != "error"}
    return replace(
        waiting,
        action=complete.action,
        tool_calls=complete.tool_calls,
        # The request that fetches an answer has no parameters; those of the first one made it.
        metadata={**kept, **complete.metadata, "params": kept.get("params", {})},
        prompt_token_ids=complete.prompt_token_ids,
        token_ids=complete.token_ids,
        logprobs=complete.logprobs,
    )


def metadata_of(
    exchange: Exchange, talk: RequestHistory, reply: Reply, failed: list[UnansweredRequest]
) -> dict[str, Json]:
    """Return an item's metadata: everything known about a call except its texts."""
    entries: dict[str, Json] = {
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
        "server_calls": reply.server_calls or None,
        "history_missing": talk.missing,
        "redacted": talk.redacted or reply.redacted or None,
    }
    if exchange.streamed:
        first = exchange.first_token_seconds or 0.0
        entries |= {"stream": True, "first_token_seconds": round(first, 6)}
    if reply.logprob_tokens is not None:
        entries |= {"logprobs": reply.logprobs, "logprob_tokens": reply.logprob_tokens}
    return {name: value for name, value in entries.items() if value is not None}


def cleaned(reply: Reply, clean: Cleaner, *, prompt_too: bool) -> Reply:
    """Remove the secrets from a reply, and the token ids that spell them."""
    if prompt_too:
        # The ids spell the prompt, from which a secret was removed.
        reply.prompt_token_ids = None
    texts = [reply.text, reply.tool_calls, reply.reasoning, reply.others, reply.error]
    value, changed = clean([*texts, reply.server_calls])
    reply.text, reply.tool_calls, reply.reasoning, reply.others, reply.error = value[:5]
    reply.server_calls = value[5]
    if changed:
        reply.redacted = True
        reply.token_ids = reply.logprobs = reply.logprob_tokens = None
    return reply


def _failure(status: int, body: bytes) -> str:
    shown = body[:4000].decode("utf-8", "replace")
    return f"HTTP {status}: {shown}" if status >= 400 else "an empty response"
