"""A language model whose calls are limited, counted, and kept in a file so that none is paid twice.

It wraps any `ChatModel`. A `RemoteChatModel` has a cache and a budget too, which may be shared by
several uses of an endpoint; these belong to one use of it, such as the judge of a run.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable
from weakref import WeakValueDictionary

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.checks import Number, OrNone, WholeNumber
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.fingerprint import settings_text
from orbiter.train.llm.budget import Budget
from orbiter.train.llm.cache import Request, ResponseCache, request_of
from orbiter.train.llm.chat import Answer, ChatModel, Sample, Shaping, ask, name_of, sample_of
from orbiter.train.llm.failure import BudgetError

Schema = Mapping[str, object]


@runtime_checkable
class Priced(Protocol):
    """A model that knows what a call may cost."""

    def most_cost(self, messages: Sequence[Message]) -> float | None:
        """Return the highest cost of a call; None if it has no prices."""


class Spent(NamedTuple):
    """The calls of a model and their cost."""

    calls: int = 0
    """Answers that were not in the cache, those of earlier processes with this cache included."""
    cost: float = 0.0
    """Their cost, in the currency of the model's prices."""
    cached: int = 0
    """Answers that this process took from the cache."""


class MeteredModel:
    """A `ChatModel` with a limit of calls and of money, and optionally a file of answers."""

    def __init__(
        self, model: ChatModel, *, max_calls: int | None = None, max_cost: float | None = None
    ) -> None:
        """Wrap a model.

        Args:
            model: The model to ask.
            max_calls: Most calls; answers from the cache do not count.
            max_cost: Most that they may cost. A model with prices is not asked if the next call
                could exceed it. Of another model the dearest call so far is taken for the next one,
                so the first calls, which run together, may exceed it.

        Raises:
            ConfigError: `max_cost` is set, and the model has no prices.
        """
        OrNone(WholeNumber(at_least=1))("max_calls", max_calls)
        OrNone(Number(above=0))("max_cost", max_cost)
        if max_cost is not None and isinstance(model, Priced) and model.most_cost([]) is None:
            raise ConfigError(
                f"max_cost={max_cost:g} needs the prices of {name_of(model)}: set price=Price(...) "
                "in its ClientConfig, or limit the calls with max_calls"
            )
        self._model = model
        self._key = _identity(model)
        self.max_calls, self.max_cost = max_calls, max_cost
        self._cache: ResponseCache | None = None
        self._calls, self._reserved, self._cached, self._cost = 0, 0, 0, 0.0
        self._loose = Spent()
        """Calls whose answers are in no file."""
        self._dearest = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._budget = Budget(max_cost)
        self._asking: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    @property
    def name(self) -> str:
        """Name of the wrapped model."""
        return name_of(self._model)

    @property
    def fingerprint(self) -> str:
        """Identifies what determines the answers."""
        return self._key

    @property
    def spent(self) -> Spent:
        """What the calls so far have cost."""
        return Spent(self._calls, self._cost, self._cached)

    def kept_in(self, path: str | os.PathLike[str]) -> MeteredModel:
        """Return this model with a file of answers, which count as calls beside those made so far.

        Raises:
            StorageError: the file cannot be opened, or is not a response cache.
        """
        kept = MeteredModel(self._model, max_calls=self.max_calls, max_cost=self.max_cost)
        kept._cache = ResponseCache(path)
        kept._loose = self._loose
        kept._calls = len(kept._cache) + self._loose.calls
        kept._cost = kept._cache.cost + self._loose.cost
        kept._dearest = kept._cost / kept._calls if kept._calls else 0.0
        kept._budget.spent = kept._cost
        return kept

    def close(self) -> None:
        """Close the file of answers; later answers are not kept."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        """Return the answer to the conversation so far.

        Raises:
            CallbackError: the model raised.
            BudgetError: the call could exceed a limit, so it was not made.
        """
        return await self.answer(messages, index=0, schema=None)

    def sample(self, index: int) -> ChatModel:
        """Return the model whose answers are the `index`-th sample, from 0."""
        return Sample(self, index, None)

    def shaped(self, schema: Schema) -> ChatModel:
        """Return the model that asks for JSON of this schema."""
        return Sample(self, 0, schema)

    async def answer(
        self, messages: Sequence[Message], *, index: int, schema: Schema | None
    ) -> Answer:
        """Return one answer, from the file if it is there."""
        self._bind()
        request = request_of(self._key, messages, {}, schema=schema, index=index)
        # Two tasks with the same request pay once: the second one finds the first one's answer.
        lock = self._asking.setdefault(request.key, asyncio.Lock())
        async with lock:
            raw = None if self._cache is None else self._cache.get(request)
            if raw is None:
                return await self._ask(request, messages, index, schema)
        self._cached += 1
        return replace(_read(raw), cost=0.0, cached=True)

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._budget.bind()
            self._asking = WeakValueDictionary()

    async def _ask(
        self, request: Request, messages: Sequence[Message], index: int, schema: Schema | None
    ) -> Answer:
        if self.max_calls is not None and self._calls + self._reserved >= self.max_calls:
            raise BudgetError(
                f"{self.name} may be called max_calls={self.max_calls} times, and has been; raise "
                "max_calls to go on"
            )
        model = sample_of(self._model, index)
        if schema is not None and isinstance(model, Shaping):
            model = model.shaped(schema)
        most = await self._reserve(messages)
        cost = 0.0
        self._reserved += 1
        try:
            answer = await ask(model, messages)
            cost = answer.cost
            self._calls += 1
            self._cost += cost
            self._dearest = max(self._dearest, cost)
            # Kept before it is used, so that a process killed after this line pays nothing twice.
            if self._cache is not None:
                raw = msgspec.json.encode(answer)
                self._cache.put(request, raw, model=self.name, cost=cost)
            else:
                self._loose = Spent(self._loose.calls + 1, self._loose.cost + cost)
            return answer
        finally:
            self._reserved -= 1
            self._budget.settle(most, cost)

    async def _reserve(self, messages: Sequence[Message]) -> float:
        """Set the highest cost of a call aside."""
        if self.max_cost is None:
            known = None
        else:
            known = self._model.most_cost(messages) if isinstance(self._model, Priced) else None
            if self._cost >= self.max_cost:
                raise BudgetError(
                    f"{self.name} has cost {self._cost:.6g} of max_cost={self.max_cost:.6g}; raise "
                    "max_cost to go on"
                )
        most = max(self._dearest, known or 0.0)
        await self._budget.reserve(most)
        return most


def _identity(model: ChatModel) -> str:
    """Return what tells this model's answers from another's, the same in every process."""
    own = getattr(model, "fingerprint", None)
    return own if isinstance(own, str) else settings_text(model)


def _read(raw: bytes) -> Answer:
    try:
        return msgspec.json.decode(raw, type=Answer)
    except msgspec.DecodeError as error:
        raise StorageError(f"the file of answers holds an unusable answer: {error}") from None
