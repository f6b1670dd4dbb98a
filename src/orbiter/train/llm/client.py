"""A model behind an OpenAI-compatible endpoint: paced, cached, counted, never waited for in vain.

    config = ClientConfig(model="qwen3-32b", base_url="http://127.0.0.1:8000/v1")
    async with RemoteChatModel(config, cache="answers.sqlite") as model:
        answer = await model([{"role": "user", "content": "What is a monad?"}])

Every call ends: with an answer, with a `ChatError` that says why there is none, or with a
`BudgetError`. Left out: tools, images and several choices a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from orbiter.train.chat.message import Message
from orbiter.train.errors import ConfigError
from orbiter.train.llm.budget import Budget
from orbiter.train.llm.cache import Request, ResponseCache, request_of
from orbiter.train.llm.chat import Answer, ChatModel
from orbiter.train.llm.config import ClientConfig, Usage
from orbiter.train.llm.failure import ChatError
from orbiter.train.llm.gate import Gate
from orbiter.train.llm.wire import Completion, RequestFailed, Tokens, Wire, read_completion

FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 20.0
"""Seconds before the second attempt at most, doubled each time; the moment is drawn at random."""
TOKENS_A_MESSAGE = 16
"""More than what a chat template puts around a message."""

Schema = Mapping[str, object]


class RemoteChatModel:
    """A `ChatModel` behind an endpoint; used by any number of tasks of one event loop at once.

    Without a cache every call is paid for. With one, the same messages are the same answer, in
    this process and the next; `sample(1)`, `sample(2)`, ... are the further ones.
    """

    def __init__(
        self,
        config: ClientConfig,
        *,
        api_key: str | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            config: Whom to ask.
            api_key: None: the environment's OPENAI_API_KEY, where `base_url` is None.
            cache: A file for the answers.

        Raises:
            ConfigError: there is no key for an endpoint that needs one.
            MissingExtraError: the `openai` package is not installed.
        """
        if config.base_url is None and not (api_key or os.environ.get("OPENAI_API_KEY")):
            raise ConfigError("there is no API key: set OPENAI_API_KEY, or pass api_key=")
        self.config = config
        self.usage = Usage()
        """What was done so far, in this process."""
        self._wire = Wire(config, api_key)
        self._cache = None if cache is None else ResponseCache(cache)
        self._gate = Gate(concurrency=config.concurrency, give_up_seconds=config.give_up_seconds)
        spent = self._cache.cost if self._cache is not None and config.budget is not None else 0.0
        self._budget = Budget(config.budget, spent=spent)
        self._asking: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._jitter = random.Random()  # when to try again, nothing of the data

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.model

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        """Return the answer to the conversation so far.

        Raises:
            ChatError: there is none; `kind` names the reason.
            BudgetError: asking could have passed the budget.
        """
        return await self.answer(messages, index=0, schema=None)

    def sample(self, index: int) -> ChatModel:
        """Return the model whose answers are the `index`-th sample, from 0."""
        return _Sample(self, index, None)

    def shaped(self, schema: Schema) -> ChatModel:
        """Return the model that is told to answer with JSON of this schema."""
        return _Sample(self, 0, schema)

    async def answer(
        self, messages: Sequence[Message], *, index: int, schema: Schema | None
    ) -> Answer:
        """Return one answer, from the cache where it is there."""
        parameters = self.config.parameters
        request = request_of(self.config.model, messages, parameters, schema=schema, index=index)
        if self._cache is None:
            return await self._ask(request, messages, schema)
        # Two tasks that ask the same at once pay once: the second one finds the first one's answer.
        lock = self._asking.setdefault(request.key, asyncio.Lock())
        async with lock:
            raw = self._cache.get(request)
            if raw is None:
                return await self._ask(request, messages, schema)
        self.usage.cached += 1
        return _as_answer(read_completion(raw), cost=0.0, cached=True)

    async def close(self) -> None:
        """Close the connections and the cache."""
        await self._wire.close()
        if self._cache is not None:
            self._cache.close()

    async def __aenter__(self) -> RemoteChatModel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(
        self, request: Request, messages: Sequence[Message], schema: Schema | None
    ) -> Answer:
        """Try until there is an answer or no sense in trying."""
        extra = self._extra(schema)
        waiting_since, failures = time.monotonic(), 0
        while True:
            try:
                return await self._attempt(request, messages, extra, waiting_since)
            except RequestFailed as failure:
                if failure.kind == "rate_limit":
                    continue  # the gate holds us as long as the endpoint wants
                failures += 1
                if failure.kind == "refused" or failures >= self.config.attempts:
                    times = f"after {failures} requests: " if failures > 1 else ""
                    raise ChatError(
                        f"{self.config.model}: {times}{failure}", kind=failure.kind
                    ) from None
                backoff = min(FIRST_BACKOFF * 2**failures, LONGEST_BACKOFF)
                await asyncio.sleep(
                    max(failure.retry_after or 0.0, self._jitter.uniform(0.0, backoff))
                )

    async def _attempt(
        self,
        request: Request,
        messages: Sequence[Message],
        extra: Mapping[str, object],
        waiting_since: float,
    ) -> Answer:
        """Send one request when it is its turn, and keep what came of it."""
        async with self._reserved(request) as bill, self._gate.turn(waiting_since) as sent_at:
            self.usage.requests += 1
            try:
                raw = await self._wire.send(messages, extra)
                completion = read_completion(raw)
            except RequestFailed as failure:
                self._note(failure, sent_at, bill)
                raise
            except asyncio.CancelledError:
                bill.unsure = bill.most
                raise
            self._gate.answered()
            bill.cost = self._cost(completion, bill.most)
            if self._cache is not None:
                self._cache.put(request, raw, model=self.config.model, cost=bill.cost)
            return self._counted(completion, bill.cost)

    @contextlib.asynccontextmanager
    async def _reserved(self, request: Request) -> AsyncIterator[_Bill]:
        """Set aside the most that a request can cost, and settle what it did."""
        bill = _Bill(self._most(request))
        await self._budget.reserve(bill.most)
        try:
            yield bill
        finally:
            self.usage.cost += bill.cost
            self.usage.unsure_cost += bill.unsure
            self._budget.settle(bill.most, bill.cost + bill.unsure)

    def _most(self, request: Request) -> float:
        """Bound what a request can cost: a token stands for at least one byte."""
        price, most_tokens = self.config.price, self.config.most_tokens
        if price is None:
            return 0.0
        read = len(request.body) + TOKENS_A_MESSAGE * (1 + request.body.count(b'"role"'))
        return price.of(read, most_tokens or 0)

    def _cost(self, completion: Completion, most: float) -> float:
        """Return what an answer cost; the most it can have cost where the endpoint counts not."""
        price, tokens = self.config.price, completion.usage
        if price is None:
            return 0.0
        if tokens is None or tokens.prompt_tokens is None or tokens.completion_tokens is None:
            return most
        return price.of(tokens.prompt_tokens, tokens.completion_tokens)

    def _note(self, failure: RequestFailed, sent_at: float, bill: _Bill) -> None:
        if failure.kind == "rate_limit":
            self.usage.rate_limited += 1
            self._gate.rate_limited(sent_at, failure.retry_after)
            return
        self.usage.failed += 1
        bill.unsure = bill.most if failure.maybe_paid else 0.0
        if failure.kind in {"refused", "answer"}:
            self._gate.answered()
        else:
            self._gate.failed(failure.kind)

    def _counted(self, completion: Completion, cost: float) -> Answer:
        answer = _as_answer(completion, cost=cost, cached=False)
        self.usage.answers += 1
        self.usage.prompt_tokens += answer.prompt_tokens or 0
        self.usage.completion_tokens += answer.completion_tokens or 0
        return answer

    def _extra(self, schema: Schema | None) -> dict[str, object]:
        extra = dict(self.config.parameters)
        if schema is not None:
            shape = {"name": "answer", "schema": dict(schema), "strict": False}
            extra["response_format"] = {"type": "json_schema", "json_schema": shape}
        return extra


@dataclass(slots=True)
class _Bill:
    """What one request may cost, and what it did."""

    most: float
    cost: float = 0.0
    unsure: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """One of several answers to the same messages, in a shape or without one."""

    model: RemoteChatModel
    index: int
    schema: Schema | None

    @property
    def name(self) -> str:
        return self.model.name

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        return await self.model.answer(messages, index=self.index, schema=self.schema)

    def sample(self, index: int) -> ChatModel:
        return _Sample(self.model, index, self.schema)

    def shaped(self, schema: Schema) -> ChatModel:
        return _Sample(self.model, self.index, schema)


def _as_answer(completion: Completion, *, cost: float, cached: bool) -> Answer:
    tokens = completion.usage or Tokens()
    return Answer(
        completion.text,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        cost=cost,
        cached=cached,
    )
