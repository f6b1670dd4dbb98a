"""What evolution has to beat: the best of N variants, and the best of N draws.

Each is a strategy of its own, and each is a `baseline=` of `EvolutionPipeline`, which then runs it
for as many evaluations as the evolution took and puts its score beside the result.
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
    """A strategy that knows how to draw a candidate from anywhere."""

    def draw(self, random_: random.Random) -> object:
        """Return a candidate from anywhere."""


class BestOfN(EvolutionStrategy[C]):
    """Variants of the initial candidates only: what mutation reaches without selection.

    Example::

        pipeline = EvolutionPipeline(config, strategy, baseline=BestOfN)
        result = await pipeline.run(start)
        print(result.best_score, result.baseline)
    """

    renews: ClassVar[bool] = True

    def __init__(self, strategy: EvolutionStrategy[C], initial: Sequence[C]) -> None:
        """Take over `evaluate` and `mutate` of `strategy`, and vary `initial` alone."""
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
        keys = {self.key(candidate) or repr(candidate) for candidate in self._initial}
        firsts = [i for i, c in enumerate(population) if (self.key(c) or repr(c)) in keys]
        return self.context.rng.choice(firsts) if firsts else None


class RandomSearch(EvolutionStrategy[C]):
    """Candidates drawn from anywhere, none from another.

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
        """Take over `evaluate` of `strategy`, and draw by its `draw`, or the one given.

        Raises:
            ConfigError: neither is there.
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
