"""One episode of an agent on a live policy: answers its requests and records every answer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.errors import StateError
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.answering import Answering, as_refusal, too_long
from orbiter.train.serve.asked import (
    SAMPLING,
    ChatRequest,
    Refusal,
    SharedFields,
    as_message,
    finished,
)
from orbiter.train.serve.dialects import Dialect, dialect_of
from orbiter.train.serve.reply import DrawSettings, GrowingReply
from orbiter.train.serve.splice import Prompt, Splicer
from orbiter.train.serve.stream import Writer, events

T = TypeVar("T")
MOST_ANSWERS = 128
"""The maximum `n` of a request, as OpenAI's API has it."""
REFUSED_AT_ONCE = 10
"""Refusals of an episode that are sent at once."""
REFUSAL_SECONDS = 0.5
"""How long each further refusal waits."""
END = None
"""Marks the end of a stream of chunks that is passed between threads."""


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
    """The drawn tokens, including the one that ended the answer."""
    logprobs: list[float]
    """Log probability of each drawn token in nats, of the full softmax at the temperature."""
    finish_reason: str
    """"stop", "length", or "cancelled" if the agent disconnected before the end."""
    weights_version: int
    reply: Message
    """The answer as a message, with its calls."""
    continues: int | None
    """The turn whose tokens the prompt begins with; None if a new stream begins."""
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
    """An HTTP response that is passed in memory."""

    status: int
    headers: list[tuple[str, str]]
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class BlockingResponse:
    """The same for code that blocks its thread."""

    status: int
    headers: list[tuple[str, str]]
    chunks: Iterator[bytes]


class Host(Protocol):
    """What a session needs from its `LivePolicy`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    return_token_ids: bool
    answering: Answering[Any]

    @property
    def version(self) -> int:
        """How often the weights were refreshed."""

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the decode loop's thread."""

    def count(self, turn: Turn) -> None:
        """Add a turn to the statistics."""


class LiveSession:
    """One episode: answers requests from any thread, and records every answer."""

    def __init__(
        self,
        live: Host,
        *,
        seed: int,
        max_turns: int | None,
        max_episode_tokens: int | None,
    ) -> None:
        """Made by `LivePolicy.session`."""
        self.seed, self.max_turns, self.max_episode_tokens = seed, max_turns, max_episode_tokens
        self.turns: list[Turn] = []
        self.stop_reason: str | None = None
        """The limit that the agent reached: "max_turns", "max_tokens" or "context"; None if
        none."""
        self.tokens = 0
        """Tokens of the episode so far, each once."""
        self.refusals: Counter[str] = Counter()
        """Requests that got an error instead of an answer, by its status and message."""
        self.dropped: Counter[str] = Counter()
        """Unsupported settings that requests contained, by name."""
        self.overridden: Counter[str] = Counter()
        """Sampling settings in requests that the trainer's settings replaced, by name."""
        self._live = live
        self._splicer = Splicer(live.answering)
        self._replies: set[GrowingReply] = set()
        self._asked: Counter[str] = Counter()
        self._requests = 0
        self._closed = False

    @property
    def requests(self) -> int:
        """Requests that were accepted, whether or not an answer was drawn."""
        return self._requests

    def takes(self, method: str, path: str) -> bool:
        """Return whether a request is one that `handle` answers."""
        return method == "POST" and dialect_of(path) is not None

    async def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer a request from any event loop."""
        # The caller may be on any loop; the work itself runs on the decode loop's thread.
        answered = await asyncio.wrap_future(self._live.submit(self._answer(path, headers, body)))
        if isinstance(answered.chunks, _Whole):
            return answered

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
        """Answer a request and block the calling thread meanwhile."""
        answered = self._live.submit(self._answer(path, headers, body)).result()
        if isinstance(answered.chunks, _Whole):
            return BlockingResponse(answered.status, answered.headers, iter(answered.chunks.left))

        def chunks() -> Iterator[bytes]:
            try:
                while (chunk := self._live.submit(_next(answered.chunks)).result()) is not END:
                    yield chunk
            finally:
                self._leave(answered.chunks)

        return BlockingResponse(answered.status, answered.headers, chunks())

    def close(self) -> None:
        """End the episode: active answers are dropped, and later requests get 410."""
        # Set before the replies leave, so that no new one can start in between.
        self._closed = True
        # A copy: replies remove themselves from the set on the other thread.
        for reply in tuple(self._replies):
            reply.leave()

    def _leave(self, chunks: AsyncIterator[bytes]) -> None:
        """Inform the decode loop that the client has left."""
        with contextlib.suppress(StateError):  # it has been closed meanwhile
            self._live.submit(_close(chunks))

    async def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer on the decode loop's thread."""
        del headers  # all callers are treated alike here
        dialect = dialect_of(path)
        if dialect is None:
            return _json(404, Refusal(404, f"{path}: no such route").body())
        try:
            return await self._reply(dialect, body)
        except Exception as error:
            refusal = as_refusal(error)
            self.refusals[f"{refusal.status}: {refusal.message}"] += 1
            # An agent that catches every error and tries again would otherwise keep this loop busy,
            # also long after its episode.
            if self.refusals.total() > REFUSED_AT_ONCE:
                await asyncio.sleep(REFUSAL_SECONDS)
            return _json(refusal.status, dialect.refused(refusal))

    async def _reply(self, dialect: Dialect, body: bytes) -> Response:
        started = time.time()
        self._check_open()
        # Lenient: an agent's settings that do not exist here must not end its episode.
        request, dropped = dialect.parse(body, lenient=True)
        # The distribution must be the one that training assumes, so the trainer's settings win.
        for name in dropped:
            (self.overridden if name in SAMPLING else self.dropped)[name] += 1
        # Counted by requests, not answers, since several may be open at once.
        if self.max_turns is not None and self._requests >= self.max_turns:
            raise self._stop("max_turns", f"this episode may have {self.max_turns} turns")
        # Counted before the first await, so that parallel requests cannot exceed the limit.
        self._requests += 1
        if self._live.return_token_ids:
            request = msgspec.structs.replace(request, return_token_ids=True, logprobs=True)
        answering = self._live.answering
        answering.check_length(request)
        chat, tools = request.chat, request.offered
        # Rendering runs beside the decode loop, which goes on drawing meanwhile.
        with answering.batcher.announced():
            prompt = await answering.beside(self._splicer.prompt, chat, tools)
            sampling = self._sampling(request, prompt)
            # Checked again: the episode may have been closed during the await.
            self._check_open()
            reply = answering.submit(prompt.token_ids, sampling)
        self._replies.add(reply)
        key = f"{sampling.seed & (1 << 64) - 1:016x}"
        shared = SharedFields(key, int(started), request.model)
        writer = dialect.writer(reply, request, shared, answering.policy.tokenizer)
        # The version is taken now; the weights do not change while an answer is drawn.
        record = _Recording(self, reply, request, shared, prompt, started, self._live.version)
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
        # The first limit reached counts; later refusals are its consequences.
        self.stop_reason = self.stop_reason or reason
        return Refusal(400, message, code=reason)

    def _sampling(self, request: ChatRequest, prompt: Prompt) -> DrawSettings:
        """Apply the trainer's settings and the limits of the episode."""
        live = self._live
        n = request.n or 1
        if n > MOST_ANSWERS:
            raise Refusal(400, f"n may be at most {MOST_ANSWERS}, got {n}", param="n")
        room = live.answering.policy.context_length - len(prompt.token_ids)
        if room < 1:
            self.stop_reason = self.stop_reason or "context"
            raise too_long(live.answering.policy.context_length, len(prompt.token_ids), 1)
        longest = min(request.longest or live.max_new_tokens, live.max_new_tokens)
        # Which limit made the answer shorter is remembered, to report why the episode ended.
        limit = "context" if room < longest else None
        longest = min(longest, room)
        if self.max_episode_tokens is not None:
            # Divided by n, since each of the n answers may take this many tokens.
            left = (self.max_episode_tokens - self.tokens - self._new_tokens(prompt)) // n
            if left < 1:
                message = f"this episode may have {self.max_episode_tokens} tokens"
                raise self._stop("max_tokens", message)
            limit = "max_tokens" if left < longest else limit
            longest = min(longest, left)
        # The seed depends on the prompt, not on the order of requests, which varies between runs.
        ids = ",".join(map(str, prompt.token_ids)).encode()
        digest = hashlib.blake2b(ids, digest_size=16).hexdigest()
        # The same prompt asked twice gets two samples.
        seed = sub_seed(self.seed, "turn", digest, self._asked[digest])
        self._asked[digest] += 1
        return DrawSettings(
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
        """Count the tokens of a prompt that its stream does not already contain."""
        if prompt.continues is None:
            return len(prompt.token_ids)
        before = self.turns[prompt.continues]
        # The earlier prompt and answer are in the stream already and were counted then.
        return len(prompt.token_ids) - len(before.prompt_token_ids) - len(before.token_ids)

    def add(self, turn: Turn, prompt: Prompt, limit: str | None) -> None:
        """Record a turn that has ended."""
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

    def forget(self, reply: GrowingReply) -> None:
        """Drop a reply that has ended."""
        self._replies.discard(reply)


@dataclass(slots=True)
class _Recording:
    """Records the answers of one reply as turns of the session, each once."""

    session: LiveSession
    reply: GrowingReply
    request: ChatRequest
    shared: SharedFields
    prompt: Prompt
    started: float
    version: int
    over: bool = False

    def end(self) -> None:
        """Record the drawn tokens, whether the answer is complete or not."""
        # Called at the end of a stream and when the client leaves, whichever comes first.
        if self.over:
            return
        self.over = True
        self.session.forget(self.reply)
        for choice in self.reply.choices:
            # An answer that ended with an error is not a sample of the policy.
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
                reply=as_message(done, self.shared, choice.index),
                continues=self.prompt.continues,
                drift=self.prompt.drift,
                temperature=self.reply.sampling.temperature,
                started=self.started,
                ended=time.time(),
            )
            self.session.add(turn, self.prompt, self.reply.sampling.limit)


def _stream(
    reply: GrowingReply, request: ChatRequest, writer: Writer, record: _Recording
) -> Response:
    chunks = events(reply, request, writer, refusal=as_refusal, at_end=record.end)
    headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")]
    return Response(200, headers, chunks)


def _json(status: int, body: object) -> Response:
    encoded = msgspec.json.encode(body)
    headers = [("content-type", "application/json"), ("content-length", str(len(encoded)))]
    if status >= 400:
        # OpenAI's and Anthropic's clients obey this header
        headers.append(("x-should-retry", "false"))
    return Response(status, headers, _Whole([encoded]))


class _Whole:
    """A body that is complete, so that its reader need not ask the decode loop's thread for it."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.left = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, END)


async def _close(chunks: AsyncIterator[bytes]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
