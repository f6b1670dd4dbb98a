"""A policy that an engine elsewhere samples from, behind the API of a model server in this process.

    loop = LoopThread("answers")
    live = RemotePolicy(model, engine, loop, max_new_tokens=256, temperature=1.0)
    episode = await run_episode(agent, task, live, seed=0)

`LivePolicy` draws its answers here. A `RemotePolicy` sends the tokens of a prompt to an engine
(vLLM or SGLang in verl's workers) and gets the tokens of the answer. Everything else is the same
code: dialects, spliced prompts, limits, turns. The engine answers whole, so an answer that is
streamed to the agent comes in one piece.

One `RemotePolicy` serves one episode. The engine gets the same session name with each of its
prompts, so that it can send them to the server that has the beginning in its prefix cache.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from typing_extensions import override

from orbiter.train.errors import StateError
from orbiter.train.serve.answering import Answering
from orbiter.train.serve.reply import ChatPolicy, DrawnToken, DrawSettings, GrowingReply
from orbiter.train.serve.session import LiveSession, Turn

T = TypeVar("T")


class Generated(NamedTuple):
    """An answer of an engine."""

    token_ids: Sequence[int]
    """With the token that ended it."""
    logprobs: Sequence[float]
    """In nats, of the full softmax at the temperature."""
    first_version: int | None = None
    """Version of the weights that drew the first token, if the engine knows it."""
    last_version: int | None = None


class Engine(Protocol):
    """Draws answers, token ids in and token ids out."""

    async def generate(
        self, session: str, prompt_ids: Sequence[int], *, max_new_tokens: int
    ) -> Generated:
        """Draw one answer; every prompt of an episode comes with the same `session`."""


class LoopThread:
    """An event loop on a separate thread, so that code that blocks another loop cannot block it.

    A synchronous client inside an async agent blocks the agent's loop until its answer is there.
    """

    def __init__(self, name: str) -> None:
        """Start the thread; it ends with the process or with `close`."""
        self._loop = asyncio.new_event_loop()
        # A daemon thread, so that a process that forgets to close it still ends.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop.

        Raises:
            StateError: the loop is closed.
        """
        if self._loop.is_closed():
            # An unawaited coroutine would cause a warning at garbage collection.
            work.close()
            raise StateError("the loop that answers model calls is closed")
        # The only safe way into a loop of another thread.
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Stop the thread; unfinished work is dropped."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What is needed of a model to write its prompts and to read its answers."""

    tokenizer: Any
    stop_token_ids: frozenset[int]
    context_length: int
    """Tokens of a prompt and its answer at most."""


class RemotePolicy:
    """The policy of one episode, sampled by an engine elsewhere."""

    def __init__(
        self,
        model: ChatPolicy,
        engine: Engine,
        loop: LoopThread,
        *,
        name: str,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
    ) -> None:
        """Start nothing yet.

        Args:
            model: Tokenizer, stop tokens and context length.
            engine: Draws the answers at `temperature` and `top_p`.
            loop: Where requests are answered.
            name: The session that the engine gets with each prompt.
            max_new_tokens: Length of an answer at most; an agent may ask for less.
            temperature: At which the engine samples, for the record.
            top_p: At which the engine samples, for the record.
        """
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        # The agent's requests decide; the episode's record has the ids anyway.
        self.return_token_ids = False
        self.versions: list[int] = []
        """Versions of the weights that drew the answers, as far as the engine knows them."""
        self._loop = loop
        self.answering = Answering(model, _Requests(model, engine, name, self.versions))

    @property
    def version(self) -> int:
        """The newest version of the weights that has answered; 0 before the first answer."""
        return max(self.versions, default=0)

    def session(
        self, *, seed: int, max_turns: int | None = None, max_episode_tokens: int | None = None
    ) -> LiveSession:
        """Open a session for the episode; see `LivePolicy.session`. The engine draws unseeded."""
        return LiveSession(
            self, seed=seed, max_turns=max_turns, max_episode_tokens=max_episode_tokens
        )

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine where requests are answered."""
        return self._loop.submit(work)

    def count(self, turn: Turn) -> None:
        """Do nothing: the engine keeps its own statistics."""

    def close(self) -> None:
        """End the thread that writes prompts."""
        self.answering.close()


class _Requests:
    """Sends the prompts of an episode to the engine; takes the place of the decode loop."""

    full = False

    def __init__(self, model: ChatPolicy, engine: Engine, name: str, versions: list[int]) -> None:
        self._model, self._engine, self._name, self._versions = model, engine, name, versions

    def submit(self, prompt_ids: Sequence[int], sampling: DrawSettings) -> GrowingReply:
        """Ask the engine for the answers, which arrive later."""
        reply = _RemoteReply(prompt_ids, sampling, self._model)
        # A task keeps `submit` synchronous, as that of the decode loop is.
        reply.asking = asyncio.get_running_loop().create_task(self._ask(reply))
        return reply

    def announced(self) -> AbstractContextManager[None]:
        """Do nothing: the engine elsewhere makes its own batches."""
        return nullcontext()

    async def _ask(self, reply: GrowingReply) -> None:
        try:
            # The answers of one request are drawn independently, at the same time.
            answers = await asyncio.gather(
                *(
                    self._engine.generate(
                        self._name, reply.prompt_ids, max_new_tokens=reply.sampling.max_new_tokens
                    )
                    for _ in reply.choices
                )
            )
        except Exception as error:  # whatever kept the engine from answering is the answer
            reply.fail(error)
            return
        for choice, answer in zip(reply.choices, answers, strict=True):
            # A mismatch would shift the log probabilities against their tokens for the whole
            # episode.
            if len(answer.token_ids) != len(answer.logprobs) or not answer.token_ids:
                reply.fail(
                    StateError(
                        f"the engine answered with {len(answer.token_ids)} tokens and "
                        f"{len(answer.logprobs)} log probabilities; each token needs one"
                    )
                )
                return
            versions = (answer.first_version, answer.last_version)
            self._versions += [version for version in versions if version is not None]
            for token_id, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
                # Through the same method as local tokens, so stop texts and limits apply alike.
                reply.take(choice, DrawnToken(token_id, logprob, []))
                # The engine may return tokens after a stop text, which the client never sees.
                if choice.finish_reason is not None:
                    break
            reply.end(choice)


class _RemoteReply(GrowingReply):
    """A reply whose tokens come all at once."""

    asking: asyncio.Task[None] | None = None

    @override
    def leave(self) -> None:
        """Stop waiting for the engine; a client that still waits for the answer gets an error."""
        super().leave()
        if self.asking is not None and not self.asking.done():
            # `leave` may be called from the agent's thread; the task belongs to the loop's.
            self.asking.get_loop().call_soon_threadsafe(self._give_up)

    def _give_up(self) -> None:
        if self.asking is not None and self.asking.cancel() and not self.done:
            self.fail(StateError("the episode ended before the answer was complete"))
