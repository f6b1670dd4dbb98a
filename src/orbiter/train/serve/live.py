"""A policy in training that answers the model calls of agents, in this process.

    async with LivePolicy(policy, temperature=1.0, max_new_tokens=256) as live:
        session = live.session(seed=7, max_turns=8, max_episode_tokens=2048)
        answer = await session.handle("/v1/chat/completions", {}, body)   # or handle_blocking(...)
        async for chunk in answer.chunks: ...
        session.close()                     # later calls get 410
        session.turns                       # ids, log probabilities, version: what to train on
        await live.release()                # frees memory for the update, if it is needed
        ...                                 # update the weights; then, before the next answer:
        await live.refresh()

A session is one episode of one agent. It answers chat completions, Responses and Anthropic
messages, whole and streamed, and keeps every answer as a `Turn`. The trainer's sampling settings
apply, not the agent's (`session.overridden` and `session.dropped` count the agent's settings that
had no effect). An answer depends only on the session's seed, the prompt, and how often that prompt
was asked before, not on the order of arrival or on other sessions.

Prompts keep the tokens that were sampled (`splice.py`), and only new tokens run (`prefix.py`).
The weights are the policy's own. After an update without `refresh`, every later answer fails with
`StaleWeightsError`, so nothing is drawn from old weights unnoticed.

The decode loop runs on its own thread, so a synchronous client may block the thread of the agent's
event loop without a deadlock. `capture.transport.answered_by(session)` gives a session the calls
that an agent's HTTP clients make, whatever their base URL.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from orbiter.train.errors import ConfigError, StateError
from orbiter.train.serve.answering import Answering
from orbiter.train.serve.batching import CACHE_BYTES, Batcher
from orbiter.train.serve.session import BlockingResponse, LiveSession, Response, Turn

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy

__all__ = ["BlockingResponse", "LivePolicy", "LiveSession", "LiveStats", "Response", "Turn"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStats:
    """Counts of a live policy's work since it was opened."""

    turns: int
    spliced: int
    drifted: int
    """Prompts whose tokens a new rendering would have changed."""
    asked_tokens: int
    """Prompt tokens of all turns."""
    run_tokens: int
    """Prompt tokens that the model processed; the others came from the prefix cache."""
    drawn_tokens: int

    @property
    def run_share(self) -> float:
        """Share of the prompt tokens that the model processed."""
        return self.run_tokens / self.asked_tokens if self.asked_tokens else 0.0


class LivePolicy:
    """A policy in training behind the API of a model server. Open it as a context manager."""

    def __init__(
        self,
        policy: Policy,
        *,
        name: str = "policy",
        max_rows: int = 64,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        cache_bytes: int = CACHE_BYTES,
        return_token_ids: bool = False,
    ) -> None:
        """Check the settings; entering the context starts the loop.

        Args:
            policy: The policy; its weights are shared with the trainer.
            name: The model's name in `GET /v1/models`; answers repeat the requested name.
            max_rows: The maximum number of answers drawn at the same time.
            max_new_tokens: The maximum length of an answer; an agent may ask for less.
            temperature: Used for every answer; the agent's own setting is ignored.
            top_p: Used for every answer; log probabilities stay those of the full softmax.
            cache_bytes: Memory for cached prefixes; 0 runs every prompt anew.
            return_token_ids: Put token ids and log probabilities into chat completions, so that
                `record` captures them too; the turns have them in any case.
        """
        for setting, value in (("max_rows", max_rows), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ConfigError(f"{setting} must be at least 1, got {value}")
        if temperature < 0 or not 0 < top_p <= 1:
            raise ConfigError(
                f"temperature must be at least 0 and top_p in (0, 1], got {temperature=}, {top_p=}"
            )
        self.policy, self.name = policy, name
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self._batcher = Batcher(
            policy,
            max_rows=max_rows,
            # A run has a known number of episodes, so no request is refused for load.
            max_waiting=1 << 20,
            cache_bytes=cache_bytes,
            # Answers of old weights would make log probabilities that belong to no policy.
            on_change="refuse",
        )
        self.return_token_ids = return_token_ids
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.answering = Answering(policy, self._batcher)
        self._turns = self._spliced = self._drifted = self._drawn = 0

    @property
    def version(self) -> int:
        """How often `refresh` has been called."""
        return self._batcher.version

    @property
    def running(self) -> int:
        """Answers that are being drawn."""
        return self._batcher.running

    @property
    def stats(self) -> LiveStats:
        """Counts of the answers so far."""
        return LiveStats(
            turns=self._turns,
            spliced=self._spliced,
            drifted=self._drifted,
            asked_tokens=self._batcher.asked_tokens,
            run_tokens=self._batcher.run_tokens,
            drawn_tokens=self._drawn,
        )

    def session(
        self, *, seed: int, max_turns: int | None = None, max_episode_tokens: int | None = None
    ) -> LiveSession:
        """Open a session for one episode.

        Args:
            seed: Determines the answers, together with the prompts.
            max_turns: The maximum number of answers; the next request gets a 400.
            max_episode_tokens: Tokens of the episode at most, prompts and answers, where what a
                turn shares with the turn that it continues counts once.
        """
        return LiveSession(
            self, seed=seed, max_turns=max_turns, max_episode_tokens=max_episode_tokens
        )

    async def refresh(self) -> None:
        """Load the policy's current weights; call it after every update, before the next answer.

        It waits for active answers, and clears the prefix cache.
        """
        await asyncio.wrap_future(self.submit(self._batcher.refresh()))

    async def release(self) -> None:
        """Free the memory of the prepared weights and of all caches, for an update.

        Until `refresh`, every model call fails with `StaleWeightsError`.
        """
        await asyncio.wrap_future(self.submit(self._batcher.release()))

    async def __aenter__(self) -> Self:
        """Start the decode loop on its thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="orbiter-live", daemon=True
        )
        self._thread.start()
        # The batcher lives on this loop alone; its coroutines run there.
        await asyncio.wrap_future(self.submit(self._batcher.__aenter__()))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; clients that still wait for an answer get an error."""
        assert self._loop is not None
        assert self._thread is not None
        # In order: the batcher fails its requests, their tasks end, and only then the loop stops.
        await asyncio.wrap_future(self.submit(self._batcher.__aexit__()))
        await asyncio.wrap_future(self.submit(_finish_tasks()))
        self._loop.call_soon_threadsafe(self._loop.stop)
        # In a thread, since joining here would block the caller's event loop.
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
        self._loop = None
        self.answering.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the decode loop's thread.

        Raises:
            StateError: the live policy is not open.
        """
        if self._loop is None:
            # Never awaited, it would warn when it is collected.
            work.close()
            raise StateError("this LivePolicy is not open: use it in an `async with` block")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def count(self, turn: Turn) -> None:
        """Add a turn to the statistics."""
        self._turns += 1
        self._spliced += turn.spliced
        self._drifted += turn.drift
        self._drawn += len(turn.token_ids)


async def _finish_tasks() -> None:
    """Wait for the tasks that are still running on this loop."""
    tasks: Sequence[asyncio.Task[Any]] = [
        task for task in asyncio.all_tasks() if task is not asyncio.current_task()
    ]
    # A cancelled task still runs its cleanup, which gather waits for.
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
