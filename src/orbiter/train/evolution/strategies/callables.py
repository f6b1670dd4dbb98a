"""A strategy made of two functions instead of a class."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from typing_extensions import override

from orbiter.train.callback import call_here, prepare
from orbiter.train.evolution.strategy import Context, EvolutionStrategy, Score

C = TypeVar("C")


class CallableEvolution(EvolutionStrategy[C]):
    """Evolution by two functions, plain or async.

    Example::

        def score(text: str) -> float:
            return -abs(len(text) - 40)

        def vary(text: str, context: Context) -> str:
            return text + context.rng.choice(" abc")

        strategy = CallableEvolution(score, vary)
        config = EvolutionConfig(epochs=60, population_size=10)
        result = await EvolutionPipeline(config=config, strategy=strategy).run(["start"])
        print(result.best_score)
    """

    def __init__(
        self,
        evaluate: Callable[[C], float | Score | Awaitable[float | Score]],
        mutate: Callable[[C, Context], C | Awaitable[C]],
        select: Callable[[Sequence[C], Sequence[float]], Sequence[C]] | None = None,
    ) -> None:
        """Set up a strategy.

        Args:
            evaluate: scores a candidate, higher is better.
            mutate: returns a variant; the context brings `rng` and `rate`.
            select: returns the survivors of a population, given its scores; None: the best share.
        """
        self._evaluate: Callable[[C], Awaitable[float | Score]] = prepare(evaluate)
        self._mutate: Callable[[C, Context], Awaitable[C]] = prepare(mutate)
        self._select = select

    @override
    async def evaluate(self, candidate: C) -> float | Score:
        return await self._evaluate(candidate)

    @override
    async def mutate(self, candidate: C) -> C:
        return await self._mutate(candidate, self.context)

    @override
    async def select(self, population: Sequence[C], scores: Sequence[float]) -> Sequence[C]:
        if self._select is None:
            return await super().select(population, scores)
        return await call_here(self._select, population, scores)

    @override
    def selects(self) -> bool:
        return self._select is not None
