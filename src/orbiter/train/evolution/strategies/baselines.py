"""Baselines that evolution should beat: the best of N variants, and the best of N random draws.

Each is a strategy, and can be the `baseline=` of an `EvolutionPipeline`, which then runs it for as
many evaluations as the evolution took and reports its score with the result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from typing_extensions import override

from orbiter.train.callback import call
from orbiter.train.errors import ConfigError
from orbiter.train.evolution.strategy import EvolutionStrategy, Score

C = TypeVar("C")


@runtime_checkable
class Drawing(Protocol):
    """A strategy that can draw a random candidate."""

    def draw(self, random_: random.Random) -> object:
        """Return a random candidate."""


class BestOfN(EvolutionStrategy[C]):
    """Makes variants of the initial candidates only: mutation without selection.

    Example::

        pipeline = EvolutionPipeline(config, strategy, baseline=BestOfN)
        result = await pipeline.run(start)
        print(result.best_score, result.baseline)
    """

    renews: ClassVar[bool] = True

    def __init__(self, strategy: EvolutionStrategy[C], initial: Sequence[C]) -> None:
        """Use `evaluate` and `mutate` of `strategy`, and vary only `initial`."""
        self._strategy = strategy
        self._initial = list(initial)

    @override
    async def evaluate(self, candidate: C) -> float | Score:
        return await call(self._strategy.evaluate, candidate)

    @override
    async def mutate(self, candidate: C) -> C:
        return await call(self._strategy.mutate, candidate)

    @override
    def key(self, candidate: C) -> str | None:
        return self._strategy.key(candidate)

    @override
    async def select(self, population: Sequence[C], scores: Sequence[float]) -> Sequence[C]:
        return self._initial

    @override
    def choose_parent(self, population: Sequence[C], scores: Sequence[Score]) -> int | None:
        # By key: after a resume the population holds equal candidates, not the same objects.
        keys = {self.key(candidate) or repr(candidate) for candidate in self._initial}
        firsts = [i for i, c in enumerate(population) if (self.key(c) or repr(c)) in keys]
        return self.context.rng.choice(firsts) if firsts else None


class RandomSearch(EvolutionStrategy[C]):
    """Draws every candidate at random, independently of the others.

    Example::

        strategy = NumericEvolution(space, score)
        pipeline = EvolutionPipeline(config, strategy, baseline=RandomSearch)
        result = await pipeline.run(strategy.sample(20))
        print(result.best_score, result.baseline)
    """

    def __init__(
        self,
        strategy: EvolutionStrategy[C],
        initial: Sequence[C],  # noqa: ARG002 - what a baseline is given
        *,
        draw: Callable[[random.Random], C] | None = None,
    ) -> None:
        """Use `evaluate` of `strategy`, and draw by its `draw`, or by the one given.

        Raises:
            ConfigError: there is neither.
        """
        if draw is None and not isinstance(strategy, Drawing):
            raise ConfigError(
                f"{type(strategy).__name__} cannot draw a candidate: give RandomSearch its `draw`"
            )
        self._strategy = strategy
        self._draw: Callable[[random.Random], C] = draw or strategy.draw  # type: ignore[attr-defined] # it is Drawing

    @override
    async def evaluate(self, candidate: C) -> float | Score:
        return await call(self._strategy.evaluate, candidate)

    @override
    async def mutate(self, candidate: C) -> C:
        return self._draw(self.context.rng)

    @override
    def key(self, candidate: C) -> str | None:
        return self._strategy.key(candidate)
