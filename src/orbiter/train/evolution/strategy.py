"""The interface that a user implements: score a candidate and vary it; the rest has defaults.

A candidate is anything but None: a text, a dict of texts, numbers, a dataclass. It is never
modified, never deep-copied and never compared with another one.
"""

from __future__ import annotations

import asyncio
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, SupportsFloat, TypeVar

from orbiter.train.errors import DataError, StateError
from orbiter.train.fingerprint import fingerprint
from orbiter.train.seeding import sub_random

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Score:
    """The result of an evaluation that has more to report than one number."""

    value: float
    """Higher is better."""
    instances: Mapping[str, float] | None = None
    """The score on each instance (a task, a question) by name, if there are several."""
    feedback: str | None = None
    """Text on the errors, for a reflective `mutate`."""
    traces: Mapping[str, str] | None = None
    """Text on the outcome, by instance, for a reflective `mutate`."""
    cost: float = 0.0
    """Cost of this evaluation, in the unit of `max_cost`."""
    failed: Mapping[str, str] | None = None
    """Instances that raised, with the reason. They count with their score in `instances`, are
    counted as failures, and are tried again when the run is resumed."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One finished epoch; counts are since the run began."""

    epoch: int
    best: float
    """Best score so far."""
    mean: float | None
    """Over the population's members that have a score."""
    median: float | None
    unique: int
    """Different candidates in the population."""
    evaluations: int
    failures: int
    cost: float
    seconds: float


class Context:
    """Information on the current call for a strategy, available as `self.context`."""

    __slots__ = (
        "_key",
        "_rng",
        "_seed",
        "child",
        "cost",
        "crossed",
        "earlier",
        "epoch",
        "history",
        "limiter",
        "parent_score",
        "places",
        "rate",
        "replicate",
        "scores",
    )

    def __init__(
        self,
        *,
        rate: float,
        seed: int,
        key: tuple[str | int, ...],
        epoch: int,
        history: Sequence[EpochRecord],
        child: str = "",
        replicate: int = 0,
        parent_score: Score | None = None,
        scores: Sequence[Score] = (),
        places: int = 0,
        earlier: Score | None = None,
        limiter: asyncio.Semaphore | None = None,
    ) -> None:
        """Made by the pipeline, once for each call."""
        self.rate = rate
        """`mutation_rate` of the configuration: how strongly to vary."""
        self.epoch = epoch
        """From 1."""
        self.history = history
        """One record for each finished epoch."""
        self.replicate = replicate
        """Which of several evaluations of the same candidate this is, from 0."""
        self.parent_score = parent_score
        """The parent's score: in `mutate`, and in the `evaluate` of a child; otherwise None."""
        self.child = child
        """Name of the child that is being made or scored: the same in its `mutate` and its
        `evaluate`, so that `rng_for` gives both the same draws."""
        self.places = places
        """In `select`: how many survivors the default would keep."""
        self.earlier = earlier
        """In `evaluate`: the score from before a resume if some of its instances failed; only
        these need another try."""
        self.limiter = limiter or asyncio.Semaphore(1)
        """For an `evaluate` that works on several tasks at once: hold it during each task, and no
        more than `concurrency` run at once over all candidates."""
        self.crossed = False
        """In `mutate`: the candidate was just made by `crossover`, and may be new as it is."""
        self.scores = scores
        """In `select`: the population's scores in full, failed members with an empty one."""
        self.cost = 0.0
        """Cost of the call, in the unit of `max_cost`; add to it if the call returns no `Score`."""
        self._seed, self._key = seed, key
        self._rng: random.Random | None = None

    @property
    def rng(self) -> random.Random:
        """A random generator for this call: equal draws at any concurrency and after a resume."""
        if self._rng is None:
            self._rng = sub_random(self._seed, *self._key)
        return self._rng

    def rng_for(self, *name: str | int) -> random.Random:
        """Return a generator seeded by `name` alone: equal names, equal draws, in any call."""
        return sub_random(self._seed, "named", *name)


CURRENT: ContextVar[Context] = ContextVar("orbiter_evolution_context")


class EvolutionStrategy(ABC, Generic[C]):
    """Score candidates and vary them; write `evaluate` and `mutate`, the rest is optional.

    Each method may be `async def` or plain; a plain `evaluate` or `mutate` runs in a thread.
    """

    @property
    def context(self) -> Context:
        """The current call: rate, rng, epoch, history.

        Raises:
            StateError: outside of a call by the pipeline.
        """
        try:
            return CURRENT.get()
        except LookupError:
            raise StateError(
                "strategy.context exists only while an EvolutionPipeline calls the strategy"
            ) from None

    @abstractmethod
    async def evaluate(self, candidate: C) -> float | Score:
        """Score a candidate: a finite number, higher is better, or a `Score`."""

    @abstractmethod
    async def mutate(self, candidate: C) -> C:
        """Return a variant as a new object; `self.context.rng` makes it repeatable."""

    async def select(
        self,
        population: Sequence[C],  # noqa: ARG002 - the signature is for those who override it
        scores: Sequence[float],  # noqa: ARG002
    ) -> Sequence[C]:
        """Return the survivors: the best `selection_ratio` of the population, by default.

        The default never compares candidates: of equal scores, the older candidate comes first.
        An override sees failed members with a score of minus infinity.
        """
        raise StateError("the pipeline selects by itself if `select` is not overridden")

    def selects(self) -> bool:
        """Return whether the strategy overrides `select`; if not, the pipeline selects."""
        return type(self).select is not EvolutionStrategy.select

    def key(self, candidate: C) -> str | None:  # noqa: ARG002 - likewise
        """Return a text that is equal for equal candidates, or None to compare the content."""
        return None

    def choose_parent(
        self,
        population: Sequence[C],  # noqa: ARG002 - likewise
        scores: Sequence[Score],  # noqa: ARG002 - likewise
    ) -> int | None:
        """Return the index of the next child's parent, or None for the pipeline's choice.

        That is each survivor in turn in generation mode, and a tournament in steady mode. It must
        be quick and plain: it blocks the event loop. `self.context.rng` makes it repeatable.
        """
        return None

    def fingerprint(self) -> Mapping[str, str]:
        """Return a digest of each value that must be unchanged for a journal to be resumed.

        By default: the code of the class, and its attributes (tasks, functions, texts, numbers,
        models) except those that its methods change. Override it to decide yourself.
        """
        return fingerprint(self)

    renews: ClassVar[bool] = False
    """True: children replace the whole population (mu, lambda); the best ever is kept aside. False:
    they fill up what `select` kept (mu + lambda)."""

    needs_scores: ClassVar[bool] = False
    """True: only scored candidates are varied, so a short initial population is evaluated as it
    is. False: it is filled with variants first."""

    mutates_crossed: ClassVar[bool] = True
    """False: the candidate that `crossover` returned is the child, and is not mutated."""


def as_score(answer: Any) -> Score:  # noqa: ANN401 - the user's own answer can be anything
    """Return what `evaluate` returned as a `Score`.

    Raises:
        DataError: it is not a number, or not finite.
    """
    if type(answer) is float and math.isfinite(answer):
        return Score(answer)
    if isinstance(answer, Score):
        value = _number(answer.value, "a score")
        cost = _number(answer.cost, "a cost")
        if cost < 0:
            raise DataError(f"evaluate returned a negative cost: {cost!r}")
        if answer.instances is None:
            return replace(answer, value=value, cost=cost)
        instances = {
            str(name): _number(score, f"instance {name!r} with a score")
            for name, score in answer.instances.items()
        }
        return replace(answer, value=value, cost=cost, instances=instances)
    return Score(_number(answer, "a score"))


def _number(value: Any, what: str) -> float:  # noqa: ANN401 - the user's own answer can be anything
    """Return a finite float, or raise a DataError that names the value."""
    if not isinstance(value, SupportsFloat) or isinstance(value, str | bytes):
        raise DataError(f"evaluate returned {value!r:.80} as {what}; it must be a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:  # an array, a huge int
        raise DataError(
            f"evaluate returned {type(value).__name__} as {what}; it must be a number that fits a "
            f"float ({error})"
        ) from error
    if not math.isfinite(number):
        raise DataError(f"evaluate returned {number} as {what}; it must be finite")
    return number
