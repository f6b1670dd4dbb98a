"""What a user writes: how to score a candidate and how to vary it. Everything else has a default.

A candidate is anything: a text, a dict of texts, numbers, a dataclass. It is never modified, never
deep-copied and never compared with another one.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, SupportsFloat, TypeVar

from orbiter.train.errors import DataError, StateError
from orbiter.train.seeding import sub_random

if TYPE_CHECKING:
    from orbiter.train.evolution.result import EpochRecord

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Score:
    """An evaluation that says more than one number."""

    value: float
    """Higher is better."""
    instances: Mapping[str, float] | None = None
    """The score on each instance (a task, a question) by name, where there are several."""
    feedback: str | None = None
    """What went wrong, in words; a reflective `mutate` reads it."""
    traces: Mapping[str, str] | None = None
    """What happened on an instance, by its name: the words that a reflective `mutate` reads."""
    cost: float = 0.0
    """What this evaluation cost, in the unit of `max_cost`."""


class Context:
    """What the loop tells the strategy about the call under way; reached as `self.context`."""

    __slots__ = (
        "_key",
        "_rng",
        "_seed",
        "child",
        "cost",
        "crossed",
        "epoch",
        "history",
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
        """How the parent scored: in `mutate`, and in the `evaluate` of a child; else None."""
        self.child = child
        """Name of the child that is being made or scored: the same in its `mutate` and its
        `evaluate`, so that `rng_for` gives both the same draws."""
        self.places = places
        """In `select`: how many survivors the default would keep."""
        self.crossed = False
        """In `mutate`: the candidate was just crossed out of two, and may be new as it is."""
        self.scores = scores
        """In `select`: the population's scores in full, failed members with an empty one."""
        self.cost = 0.0
        """What the call cost, in the unit of `max_cost`; add to it where there is no `Score`."""
        self._seed, self._key = seed, key
        self._rng: random.Random | None = None

    @property
    def rng(self) -> random.Random:
        """A generator of this call's own: the same draws at any concurrency and after a resume."""
        if self._rng is None:
            self._rng = sub_random(self._seed, *self._key)
        return self._rng

    def rng_for(self, *name: str | int) -> random.Random:
        """Return a generator keyed by `name` alone: equal names, equal draws, in any call."""
        return sub_random(self._seed, "named", *name)


CURRENT: ContextVar[Context] = ContextVar("orbiter_evolution_context")


class EvolutionStrategy(ABC, Generic[C]):
    """Score candidates and vary them; write `evaluate` and `mutate`, the rest is optional.

    Each method may be `async def` or plain; a plain `evaluate` or `mutate` runs in a thread.
    """

    @property
    def context(self) -> Context:
        """The call under way: rate, rng, epoch, history.

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

        The default never compares candidates: equal scores are decided by birth, the older first.
        An override sees failed members with a score of minus infinity.
        """
        raise StateError("the pipeline selects by itself where `select` is not overridden")

    def selects(self) -> bool:
        """Say whether `select` is the strategy's own; where not, the loop selects by itself."""
        return type(self).select is not EvolutionStrategy.select

    def key(self, candidate: C) -> str | None:  # noqa: ARG002 - likewise
        """Return what makes two candidates equal, or None to let the content decide."""
        return None

    def choose_parent(
        self,
        population: Sequence[C],  # noqa: ARG002 - likewise
        scores: Sequence[Score],  # noqa: ARG002 - likewise
    ) -> int | None:
        """Return the index of the next child's parent, or None for the loop's own choice.

        That is each survivor in its turn in generation mode, and a tournament in steady mode.
        Quick and plain, for it holds up the loop; `self.context.rng` makes it repeatable.
        """
        return None

    renews: ClassVar[bool] = False
    """True: children take the place of everybody (mu, lambda); the best ever is kept aside. False:
    they fill the places that `select` left free (mu + lambda)."""

    needs_scores: ClassVar[bool] = False
    """True: nobody is varied before it was scored, so that an initial population that is short
    begins as it is. False: it is filled with variants first."""

    mutates_crossed: ClassVar[bool] = True
    """False: what `crossover` returned is the child, and is not mutated."""


def as_score(answer: Any) -> Score:  # noqa: ANN401 - the user's own answer can be anything
    """Return what `evaluate` answered as a `Score`.

    Raises:
        DataError: it is no number, or not a finite one.
    """
    if type(answer) is float and math.isfinite(answer):
        return Score(answer)
    if isinstance(answer, Score):
        as_score(answer.value)
        if not (math.isfinite(answer.cost) and answer.cost >= 0):
            raise DataError(f"evaluate returned a cost of {answer.cost!r}")
        return answer
    if not isinstance(answer, SupportsFloat) or isinstance(answer, str | bytes):
        raise DataError(f"evaluate returned {answer!r:.80}, not a number")
    value = float(answer)
    if not math.isfinite(value):
        raise DataError(f"evaluate returned {value}, which ranks nothing")
    return Score(value)
