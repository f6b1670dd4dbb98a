"""A policy in training that answers the model calls of agents, in this process.

    async with LivePolicy(policy, temperature=1.0, max_new_tokens=256) as live:
        session = live.session(seed=7, max_turns=8, max_episode_tokens=2048)
        answer = await session.handle("/v1/chat/completions", {}, body)   # or handle_blocking(...)
        async for chunk in answer.chunks: ...
        session.close()                     # later calls get 410
        session.turns                       # ids, log probabilities, version: what to train on
        ...                                 # update the weights; then, before the next answer:
        await live.refresh()

A session is one episode of one agent. It answers chat completions, Responses and Anthropic
messages, whole and streamed, and keeps every answer as a `Turn`. The trainer's sampling settings
are in force, not the agent's (`session.overridden` and `session.dropped` count what was asked for
in vain). What is drawn depends on the session's seed, on the prompt and on how often the same
prompt was asked, so neither on the order of arrival nor on other sessions.

Prompts keep the tokens that were sampled (`splice.py`), and only new tokens run (`prefix.py`).
The weights are the policy's own. An update without `refresh` makes every later answer fail with
`StaleWeightsError`; nothing is ever drawn from old weights unnoticed.

The decode loop runs on its own thread, so a synchronous client may block the thread of the agent's
event loop without a deadlock. `capture.transport.answered_by(session)` gives a session the calls
that an agent's HTTP clients make, whatever their base URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.errors import ConfigError, StateError
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.answering import Answering, as_refusal, too_long
from orbiter.train.serve.asked import ChatRequest, Refusal, Sheet, as_message, finished
from orbiter.train.serve.batching import CACHE_BYTES, Batcher
from orbiter.train.serve.dialects import Dialect, dialect_of
from orbiter.train.serve.reply import Reply, Sampling
from orbiter.train.serve.splice import Prompt, Splicer
from orbiter.train.serve.stream import Writer, events

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy

T = TypeVar("T")
END = None
"""What a stream of chunks ends with, on its way between threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer of the policy in an episode."""

    index: int
    """0 for the first answer of the session."""
    messages: list[Message]
    """The conversation that was answered, in the form of chat completions."""
    tools: list[dict[str, Any]] | None
    prompt_token_ids: list[int]
    token_ids: list[int]
    """What was drawn, with the token that ended it."""
    logprobs: list[float]
    """Log probability of each drawn token in nats, of the full softmax at the temperature."""
    finish_reason: str
    """"stop", "length", or "cancelled" where the agent left before the end."""
    weights_version: int
    reply: Message
    """The answer as a message, with its calls."""
    continues: int | None
    """The turn whose tokens the prompt begins with; None where a new stream begins."""
    drift: bool
    """Whether a re-rendering of the conversation would have given other prompt tokens."""
    temperature: float
    started: float
    """Seconds since the epoch, when the request came in."""
    ended: float

    @property
    def spliced(self) -> bool:
        """Whether the prompt keeps tokens that were sampled in an earlier turn."""
        return self.continues is not None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer over HTTP, without HTTP."""

    status: int
    headers: list[tuple[str, str]]
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class BlockingResponse:
    """The same for code that blocks its thread."""

    status: int
    headers: list[tuple[str, str]]
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStats:
    """What a live policy has done since it was opened."""

    turns: int
    spliced: int
    drifted: int
    """Prompts that a re-rendering would have changed."""
    asked_tokens: int
    """Prompt tokens of all turns."""
    run_tokens: int
    """Prompt tokens that the model really ran; the prefix cache held the others."""
    drawn_tokens: int

    @property
    def run_share(self) -> float:
        """Share of the prompt tokens that were really run."""
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
        """Start nothing yet.

        Args:
            policy: The policy; its weights are shared with the trainer.
            name: The model's name in `GET /v1/models`; answers repeat the name that was asked for.
            max_rows: Answers drawn at the same time at most.
            max_new_tokens: Length of an answer at most; an agent may ask for less.
            temperature: In force for every answer, whatever the agent asks for.
            top_p: In force for every answer; log probabilities stay those of the full softmax.
            cache_bytes: Memory for prefixes that were run before; 0 runs every prompt anew.
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
            max_waiting=1 << 20,
            cache_bytes=cache_bytes,
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
        """What was answered so far."""
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
            seed: Decides, with the prompts, what is drawn.
            max_turns: Answers at most; the next request gets a 400.
            max_episode_tokens: Tokens of the episode at most, prompts and answers, where what a
                turn shares with the turn that it continues counts once.
        """
        return LiveSession(
            self, seed=seed, max_turns=max_turns, max_episode_tokens=max_episode_tokens
        )

    async def refresh(self) -> None:
        """Take over the policy's present weights: after every update, before the next answer.

        Answers under way are waited for. Every kept key and value is forgotten.
        """
        await asyncio.wrap_future(self.submit(self._batcher.refresh()))

    async def __aenter__(self) -> Self:
        """Start the decode loop on its thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="orbiter-live", daemon=True
        )
        self._thread.start()
        await asyncio.wrap_future(self.submit(self._batcher.__aenter__()))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; whoever still waits for an answer gets an error."""
        assert self._loop is not None
        assert self._thread is not None
        await asyncio.wrap_future(self.submit(self._batcher.__aexit__()))
        await asyncio.wrap_future(self.submit(_finish_tasks()))
        self._loop.call_soon_threadsafe(self._loop.stop)
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
            work.close()
            raise StateError("this LivePolicy is not open: use it in an `async with` block")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def count(self, turn: Turn) -> None:
        """Add a turn to the statistics."""
        self._turns += 1
        self._spliced += turn.spliced
        self._drifted += turn.drift
        self._drawn += len(turn.token_ids)


class LiveSession:
    """One episode: answers requests from any thread, and records every answer."""

    def __init__(
        self,
        live: LivePolicy,
        *,
        seed: int,
        max_turns: int | None,
        max_episode_tokens: int | None,
    ) -> None:
        """Made by `LivePolicy.session`."""
        self.seed, self.max_turns, self.max_episode_tokens = seed, max_turns, max_episode_tokens
        self.turns: list[Turn] = []
        self.stop_reason: str | None = None
        """Which limit the agent ran into: "max_turns", "max_tokens" or "context"; else None."""
        self.tokens = 0
        """Tokens of the episode so far, each once."""
        self.dropped: Counter[str] = Counter()
        """Settings that requests named and that are not supported, by name."""
        self.overridden: Counter[str] = Counter()
        """Sampling settings that requests named and that the trainer decides, by name."""
        self._live = live
        self._splicer = Splicer(live.answering)
        self._replies: set[Reply] = set()
        self._asked: Counter[str] = Counter()
        self._requests = 0
        self._closed = False

    def takes(self, method: str, path: str) -> bool:
        """Say whether a request is one that `handle` answers."""
        return method == "POST" and dialect_of(path) is not None

    async def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer a request from any event loop."""
        answered = await asyncio.wrap_future(self._live.submit(self._answer(path, headers, body)))

        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    step = self._live.submit(_next(answered.chunks))
                    chunk = await asyncio.wrap_future(step)
                    if chunk is END:
                        return
                    yield chunk
            finally:
                self._leave(answered.chunks)

        return Response(answered.status, answered.headers, chunks())

    def handle_blocking(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> BlockingResponse:
        """Answer a request from a thread that may wait."""
        answered = self._live.submit(self._answer(path, headers, body)).result()

        def chunks() -> Iterator[bytes]:
            try:
                while (chunk := self._live.submit(_next(answered.chunks)).result()) is not END:
                    yield chunk
            finally:
                self._leave(answered.chunks)

        return BlockingResponse(answered.status, answered.headers, chunks())

    def close(self) -> None:
        """End the episode: answers under way are dropped, later requests get 410."""
        self._closed = True
        for reply in tuple(self._replies):
            reply.leave()

    def _leave(self, chunks: AsyncIterator[bytes]) -> None:
        """Tell the decode loop that nobody listens any more."""
        with contextlib.suppress(StateError):  # it has been closed meanwhile
            self._live.submit(_close(chunks))

    async def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer on the decode loop's thread."""
        del headers  # who asks does not matter here
        dialect = dialect_of(path)
        if dialect is None:
            return _json(404, Refusal(404, f"{path}: no such route").body())
        try:
            return await self._reply(dialect, body)
        except Exception as error:
            refusal = as_refusal(error)
            return _json(refusal.status, dialect.refused(refusal))

    async def _reply(self, dialect: Dialect, body: bytes) -> Response:
        started = time.time()
        self._check_open()
        request, dropped = dialect.parse(body, lenient=True)
        self.dropped.update(dropped)
        for name in ("temperature", "top_p", "seed"):
            if getattr(request, name) is not None:
                self.overridden[name] += 1
        if self.max_turns is not None and self._requests >= self.max_turns:
            raise self._stop("max_turns", f"this episode may have {self.max_turns} turns")
        self._requests += 1
        if self._live.return_token_ids:
            request = msgspec.structs.replace(request, return_token_ids=True, logprobs=True)
        answering = self._live.answering
        answering.check_length(request)
        chat, tools = request.chat, request.offered
        prompt = await answering.beside(self._splicer.prompt, chat, tools)
        sampling = self._sampling(request, prompt)
        self._check_open()
        reply = answering.submit(prompt.token_ids, sampling)
        self._replies.add(reply)
        key = f"{sampling.seed & (1 << 64) - 1:016x}"
        sheet = Sheet(key, int(started), request.model)
        writer = dialect.writer(reply, request, sheet, answering.policy.tokenizer)
        record = _Recording(self, reply, request, sheet, prompt, started, self._live.version)
        if request.stream:
            return _stream(reply, request, writer, record)
        try:
            await reply.finished()
        finally:
            reply.leave()
            record.end()
        return _json(200, writer.whole())

    def _check_open(self) -> None:
        if self._closed:
            raise Refusal(410, "this episode is over", code="episode_over")

    def _stop(self, reason: str, message: str) -> Refusal:
        self.stop_reason = self.stop_reason or reason
        return Refusal(400, message, code=reason)

    def _sampling(self, request: ChatRequest, prompt: Prompt) -> Sampling:
        """Put the trainer's settings in force, and the limits of the episode."""
        live = self._live
        n = request.n or 1
        room = live.policy.context_length - len(prompt.token_ids)
        if room < 1:
            self.stop_reason = self.stop_reason or "context"
            raise too_long(live.policy.context_length, len(prompt.token_ids), 1)
        longest = min(request.longest or live.max_new_tokens, live.max_new_tokens)
        limit = "context" if room < longest else None
        longest = min(longest, room)
        if self.max_episode_tokens is not None:
            left = (self.max_episode_tokens - self.tokens - self._new_tokens(prompt)) // n
            if left < 1:
                message = f"this episode may have {self.max_episode_tokens} tokens"
                raise self._stop("max_tokens", message)
            limit = "max_tokens" if left < longest else limit
            longest = min(longest, left)
        ids = ",".join(map(str, prompt.token_ids)).encode()
        digest = hashlib.blake2b(ids, digest_size=16).hexdigest()
        seed = sub_seed(self.seed, "turn", digest, self._asked[digest])
        self._asked[digest] += 1
        return Sampling(
            n=n,
            max_new_tokens=longest,
            temperature=live.temperature,
            top_p=live.top_p,
            seed=seed,
            top_logprobs=request.top_logprobs or 0,
            stops=request.stops,
            live=bool(request.stream),
            limit=limit,
        )

    def _new_tokens(self, prompt: Prompt) -> int:
        """Count the tokens of a prompt that no earlier turn of its stream has."""
        if prompt.continues is None:
            return len(prompt.token_ids)
        before = self.turns[prompt.continues]
        return len(prompt.token_ids) - len(before.prompt_token_ids) - len(before.token_ids)

    def add(self, turn: Turn, prompt: Prompt, limit: str | None) -> None:
        """Keep a turn that has ended."""
        self.turns.append(turn)
        self.tokens += self._new_tokens(prompt) + len(turn.token_ids)
        if turn.finish_reason == "length" and limit is not None:
            self.stop_reason = self.stop_reason or limit
        self._splicer.note(
            turn.messages,
            turn.tools or (),
            reply=turn.reply,
            prompt=prompt,
            token_ids=turn.token_ids,
            turn=turn.index,
        )
        self._live.count(turn)

    def forget(self, reply: Reply) -> None:
        """Drop a reply that has ended."""
        self._replies.discard(reply)


@dataclass(slots=True)
class _Recording:
    """Turns the answers of one reply into turns of the session, once."""

    session: LiveSession
    reply: Reply
    request: ChatRequest
    sheet: Sheet
    prompt: Prompt
    started: float
    version: int
    over: bool = False

    def end(self) -> None:
        """Record what was drawn, whole or not."""
        if self.over:
            return
        self.over = True
        self.session.forget(self.reply)
        for choice in self.reply.choices:
            if not choice.tokens or self.reply.error is not None:
                continue
            done = finished(choice, self.request)
            turn = Turn(
                index=len(self.session.turns),
                messages=self.request.chat,
                tools=self.request.offered or None,
                prompt_token_ids=self.prompt.token_ids,
                token_ids=[token.token_id for token in choice.tokens],
                logprobs=[token.logprob for token in choice.tokens],
                finish_reason=choice.finish_reason or "cancelled",
                weights_version=self.version,
                reply=as_message(done, self.sheet, choice.index),
                continues=self.prompt.continues,
                drift=self.prompt.drift,
                temperature=self.reply.sampling.temperature,
                started=self.started,
                ended=time.time(),
            )
            self.session.add(turn, self.prompt, self.reply.sampling.limit)


def _stream(reply: Reply, request: ChatRequest, writer: Writer, record: _Recording) -> Response:
    chunks = events(reply, request, writer, refusal=as_refusal, at_end=record.end)
    headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")]
    return Response(200, headers, chunks)


def _json(status: int, body: object) -> Response:
    encoded = msgspec.json.encode(body)

    async def chunks() -> AsyncIterator[bytes]:
        yield encoded

    headers = [("content-type", "application/json"), ("content-length", str(len(encoded)))]
    if status >= 400:
        headers.append(("x-should-retry", "false"))  # OpenAI's and Anthropic's clients heed it
    return Response(status, headers, chunks())


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, END)


async def _close(chunks: AsyncIterator[bytes]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


async def _finish_tasks() -> None:
    """Wait for whatever still runs on this loop."""
    tasks: Sequence[asyncio.Task[Any]] = [
        task for task in asyncio.all_tasks() if task is not asyncio.current_task()
    ]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
