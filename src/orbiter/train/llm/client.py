"""A model behind an OpenAI-compatible endpoint: rate-limited, cached, metered, bounded waiting.

    config = ClientConfig(model="qwen3-32b", base_url="http://127.0.0.1:8000/v1")
    async with RemoteChatModel(config, cache="answers.sqlite") as model:
        answer = await model([{"role": "user", "content": "What is a monad?"}])

Every call ends with an answer, with a `ChatError` that says why no answer came, or with a
`BudgetError`. Tools, images and several choices in one request are not supported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from orbiter.train.chat.message import Message
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.llm.budget import Budget
from orbiter.train.llm.cache import Request, ResponseCache, request_of
from orbiter.train.llm.chat import Answer, ChatModel, Sample
from orbiter.train.llm.config import ClientConfig, Usage
from orbiter.train.llm.failure import ChatError
from orbiter.train.llm.gate import Gate
from orbiter.train.llm.wire import (
    SCHEMA_STATUS,
    Completion,
    ConnectionPool,
    RequestFailed,
    read_completion,
)

FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 20.0
"""Seconds: upper limit of the random pause before the second attempt, doubled for each further one,
and the largest such limit."""
TOKENS_A_MESSAGE = 16
"""An upper bound of the tokens that a chat template adds to a message."""

_LOG = logging.getLogger(__name__)

Schema = Mapping[str, object]


class RemoteChatModel:
    """A `ChatModel` behind an endpoint; any number of tasks of one event loop may use it at once.

    Without a cache every call is paid for. With one, the same messages get the same answer, in
    this process and the next; `sample(1)`, `sample(2)`, ... give different ones.
    """

    def __init__(
        self,
        config: ClientConfig,
        *,
        api_key: str | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        """Check the settings; the first call connects.

        Args:
            config: The endpoint and the request settings.
            api_key: None uses the environment's OPENAI_API_KEY if `base_url` is None.
            cache: A file for the answers.

        Raises:
            ConfigError: the API key is missing and the endpoint needs one.
            MissingExtraError: the `openai` package is not installed.
        """
        if config.base_url is None and not (api_key or os.environ.get("OPENAI_API_KEY")):
            raise ConfigError("there is no API key: set OPENAI_API_KEY, or pass api_key=")
        self.config = config
        self.usage = Usage()
        """Usage in this process so far."""
        self._open_wire = partial(ConnectionPool, config, api_key)
        # Opened here, so that a missing package is an early error.
        self._wire: ConnectionPool | None = self._open_wire()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cache = None if cache is None else ResponseCache(cache)
        self._gate = Gate(concurrency=config.concurrency, give_up_seconds=config.give_up_seconds)
        # The budget is for the cache as a whole: what earlier processes spent counts.
        spent = self._cache.cost if self._cache is not None and config.budget is not None else 0.0
        self._budget = Budget(config.budget, spent=spent)
        # Weak, so that the lock of a request goes when nobody asks it any more.
        self._asking: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._takes_schema = True
        """Whether the endpoint accepts `response_format`, as far as known."""
        self._jitter = random.Random()  # affects only retry times, never the data

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.model

    @property
    def fingerprint(self) -> str:
        """Identifies what determines the answers: model and parameters, but not the address."""
        return repr((self.config.model, sorted(self.config.parameters.items())))

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        """Return the answer to the conversation so far.

        Raises:
            ChatError: no answer came; `kind` is the reason.
            BudgetError: the request could have exceeded the budget.
        """
        return await self.answer(messages, index=0, schema=None)

    def most_cost(self, messages: Sequence[Message]) -> float | None:
        """Return the highest cost of a call that can be known; None without prices."""
        if self.config.price is None:
            return None
        parameters = self.config.parameters
        return self._most(request_of(self.config.model, messages, parameters, schema=None, index=0))

    def sample(self, index: int) -> ChatModel:
        """Return the model whose answers are the `index`-th sample, from 0."""
        return Sample(self, index, None)

    def shaped(self, schema: Schema) -> ChatModel:
        """Return the model that asks the endpoint for JSON of this schema.

        If the endpoint rejects a schema, later requests are sent without one, so the messages
        should state the schema too (`ask_for` does).
        """
        return Sample(self, 0, schema)

    async def answer(
        self, messages: Sequence[Message], *, index: int, schema: Schema | None
    ) -> Answer:
        """Return one answer, from the cache if it is there."""
        # The gate, the budget and the locks belong to one loop, so a new loop is noticed first.
        self._bind()
        parameters = self.config.parameters
        request = request_of(self.config.model, messages, parameters, schema=schema, index=index)
        if self._cache is None:
            return await self._ask(request, messages, schema)
        # Two tasks with the same request pay once: the second one finds the first one's answer.
        # Per request, so that different requests do not wait for each other.
        lock = self._asking.setdefault(request.key, asyncio.Lock())
        async with lock:
            raw = self._cache.get(request)
            if raw is None:
                return await self._ask(request, messages, schema)
        self.usage.cached += 1
        return _as_answer(_read_cached(raw), cost=0.0, cached=True)

    async def close(self) -> None:
        """Close the connections and the cache; a later call opens them again."""
        if self._wire is not None:
            wire, self._wire = self._wire, None
            await wire.close()
        if self._cache is not None:
            self._cache.close()

    async def __aenter__(self) -> RemoteChatModel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _bind(self) -> ConnectionPool:
        """Return the connections of the running event loop; a new loop gets new ones."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                # Not closed, because that would need the loop which has ended.
                self._wire = None  # connections of another event loop cannot be reused
            self._loop = loop
            self._gate.bind()
            self._budget.bind()
            self._asking = WeakValueDictionary()
        if self._wire is None:
            self._wire = self._open_wire()
        return self._wire

    async def _ask(
        self, request: Request, messages: Sequence[Message], schema: Schema | None
    ) -> Answer:
        """Retry until there is an answer or a further attempt is pointless."""
        # Failures are counted per call; the gate counts them for the endpoint.
        waiting_since, failures = time.monotonic(), 0
        # Remember that this endpoint rejects schemas, so that later requests do not try again.
        with_schema = schema if self._takes_schema else None
        while True:
            try:
                answer = await self._attempt(request, messages, with_schema, waiting_since)
            except RequestFailed as failure:
                if with_schema is not None and (
                    failure.about_schema or failure.status in SCHEMA_STATUS
                ):
                    # The endpoint may have rejected the schema: try once without it.
                    with_schema = None
                    if failure.about_schema:
                        self._forget_schemas(str(failure))
                    continue
                if failure.kind == "rate_limit":
                    continue  # the gate waits as long as the endpoint asks
                failures += 1
                await self._pause(failure, failures, waiting_since)
            else:
                if schema is not None and with_schema is None:
                    self._forget_schemas("the request passed only without response_format")
                return answer

    def _forget_schemas(self, reason: str) -> None:
        """Stop sending schemas to this endpoint, and log that once."""
        if self._takes_schema:
            self._takes_schema = False
            _LOG.warning(
                "%s: the endpoint refuses response_format (%s); from now on the JSON schema is "
                "stated in the messages only",
                self.config.model,
                reason,
            )

    async def _pause(self, failure: RequestFailed, failures: int, waiting_since: float) -> None:
        """Wait before the next attempt.

        Raises:
            ChatError: a further attempt is pointless, or would start too late.
        """
        name = f"{self.config.model}: {f'after {failures} requests: ' if failures > 1 else ''}"
        if failure.kind == "refused" or failures >= self.config.attempts:
            raise ChatError(f"{name}{failure}", kind=failure.kind) from None
        # Full jitter: calls that failed together do not retry together.
        backoff = min(FIRST_BACKOFF * 2**failures, LONGEST_BACKOFF)
        # The endpoint's own time is a lower limit, the jitter may make it longer.
        wait = max(failure.retry_after or 0.0, self._jitter.uniform(0.0, backoff))
        # Better to fail now than to sleep past the moment of giving up.
        if wait > self._gate.patience(waiting_since):
            asks = f" (it asks to wait {wait:.0f} s)" if failure.retry_after else ""
            raise ChatError(
                f"{name}{failure}{asks}; gave up because the endpoint would answer no call for "
                f"{self.config.give_up_seconds:g} seconds (give_up_seconds)",
                kind=failure.kind,
            ) from None
        await asyncio.sleep(wait)

    async def _attempt(
        self,
        request: Request,
        messages: Sequence[Message],
        schema: Schema | None,
        waiting_since: float,
    ) -> Answer:
        """Wait for a turn, send one request, and record its cost."""
        # The budget first: a request that may not be paid for must not hold a place in the queue.
        async with self._reserved(request) as bill, self._gate.turn(waiting_since) as sent_at:
            self.usage.requests += 1
            try:
                raw = await self._send(messages, self._extra(schema), waiting_since)
                completion = read_completion(raw)
            except RequestFailed as failure:
                self._note(failure, sent_at, bill)
                raise
            except asyncio.CancelledError:
                # Cancelled while in flight: the endpoint may have charged for it.
                bill.unsure = bill.most
                raise
            # Any response shows that the endpoint is up, before it is known whether it is useful.
            self._gate.answered()
            bill.cost = self._cost(completion, bill.most)
            # Stored before it is used, so that a process killed after this line never pays twice.
            if self._cache is not None:
                self._cache.put(request, raw, model=self.config.model, cost=bill.cost)
            return self._counted(completion, bill.cost)

    async def _send(
        self, messages: Sequence[Message], extra: Mapping[str, object], waiting_since: float
    ) -> bytes:
        """Send a request; abort it if the endpoint has answered no call for `give_up_seconds`."""
        wire, gate = self._bind(), self._gate
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def check() -> None:
            nonlocal timer
            patience = gate.patience(waiting_since)  # grows when another call gets an answer
            if patience > 0:
                # Checked again when the time is up, since an answer to another call extends it.
                timer = loop.call_later(patience, check)
            else:
                limit.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as limit:
                check()
                return await wire.send(messages, extra, alive=gate.alive)
        except TimeoutError:
            raise RequestFailed(
                f"nothing arrived in {self.config.give_up_seconds:g} s (give_up_seconds)",
                "timeout",
                maybe_paid=True,
            ) from None
        finally:
            if timer is not None:
                timer.cancel()

    @contextlib.asynccontextmanager
    async def _reserved(self, request: Request) -> AsyncIterator[_Bill]:
        """Reserve the maximum cost of a request, then record its actual cost."""
        bill = _Bill(self._most(request))
        await self._budget.reserve(bill.most)
        try:
            yield bill
        finally:
            self.usage.cost += bill.cost
            self.usage.unsure_cost += bill.unsure
            # What may have been charged counts as spent, so the budget holds in any case.
            self._budget.settle(bill.most, bill.cost + bill.unsure)

    def _most(self, request: Request) -> float:
        """Return the maximum cost of a request: every token is at least one byte."""
        price, most_tokens = self.config.price, self.config.most_tokens
        if price is None:
            return 0.0
        # An upper bound without a tokenizer, which the endpoint's model may not even publish.
        read = len(request.body) + TOKENS_A_MESSAGE * (1 + request.body.count(b'"role"'))
        return price.of(read, most_tokens or 0)

    def _cost(self, completion: Completion, most: float) -> float:
        """Return the cost of an answer, or its maximum if no token counts are reported."""
        price = self.config.price
        if price is None:
            return 0.0
        if completion.prompt_tokens is None or completion.completion_tokens is None:
            return most
        return price.of(completion.prompt_tokens, completion.completion_tokens)

    def _note(self, failure: RequestFailed, sent_at: float, bill: _Bill) -> None:
        if failure.kind == "rate_limit":
            self.usage.rate_limited += 1
            self._gate.rate_limited(sent_at, failure.retry_after)
            return
        self.usage.failed += 1
        bill.unsure = bill.most if failure.maybe_paid else 0.0
        # A refusal is an answer of the endpoint, so the breaker stays closed.
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
            # Not strict: few endpoints support strict mode for every schema.
            shape = {"name": "answer", "schema": dict(schema), "strict": False}
            extra["response_format"] = {"type": "json_schema", "json_schema": shape}
        return extra


@dataclass(slots=True)
class _Bill:
    """The cost of one request, estimated and actual."""

    most: float
    cost: float = 0.0
    unsure: float = 0.0


def _as_answer(completion: Completion, *, cost: float, cached: bool) -> Answer:
    return Answer(
        completion.text,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        cost=cost,
        cached=cached,
        reasoning=completion.reasoning,
        finish_reason=completion.finish_reason,
    )


def _read_cached(raw: bytes) -> Completion:
    try:
        return read_completion(raw)
    except RequestFailed as failure:
        raise StorageError(f"the response cache holds an unusable answer: {failure}") from None
