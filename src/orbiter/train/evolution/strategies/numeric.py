"""Evolution of settings: floats, whole numbers and choices together, without a library.

Children inherit each knob from one of two parents, or have a knob or two varied, or both. Step
sizes are spread over orders of magnitude, so that none has to be tuned. Dependencies between knobs
are not learned; covariance matrix adaptation does that for numbers (`CMAEvolution`).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from typing_extensions import override

from orbiter.train.callback import prepare
from orbiter.train.evolution.strategies.space import (
    Choice,
    Float,
    Int,
    Settings,
    Space,
    Value,
    check_settings,
    check_space,
    draw,
)
from orbiter.train.evolution.strategy import EvolutionStrategy, Score

LONGEST, DECADES = 4.0, 2.5
"""The deviation of a step is rate * LONGEST * 10^-U, with U drawn evenly from 0 to DECADES."""

PURE_CROSSING = 0.5
"""Share of the children of two parents that are not varied as well."""


class NumericEvolution(EvolutionStrategy[Settings]):
    """Searches a space of settings for the best ones.

    Example::

        def score(settings):
            return -((settings["x"] - 0.3) ** 2) - abs(settings["layers"] - 4)

        space = {"x": Float(0, 1), "rate": Float(1e-5, 1, log=True), "layers": Int(1, 12)}
        strategy = NumericEvolution(space, score)
        config = EvolutionConfig(epochs=30, mode="steady")
        pipeline = EvolutionPipeline(config=config, strategy=strategy)
        result = await pipeline.run(strategy.sample(20))

    `mutation_rate` scales the steps of numbers: at 0.1, half of them lie between 0.3 % and 6 % of
    the range, and one in ten goes beyond 16 %.
    """

    def __init__(
        self, space: Space, evaluate: Callable[[Settings], float | Score | Awaitable[float | Score]]
    ) -> None:
        """Set up a search.

        Args:
            space: knobs by name.
            evaluate: scores settings, {name: value}; plain or async; higher is better.

        Raises:
            ConfigError: the space is empty, or holds something other than knobs.
        """
        check_space(space)
        self.space = dict(space)
        self._knobs = tuple(self.space.items())
        self._score: Callable[[Settings], Awaitable[float | Score]] = prepare(evaluate)

    def sample(self, count: int, *, seed: int = 0) -> list[Settings]:
        """Return settings from anywhere in the space, to start from."""
        random_ = random.Random(seed)
        return [self.draw(random_) for _ in range(count)]

    def draw(self, random_: random.Random) -> Settings:
        """Return settings from anywhere in the space."""
        return {name: draw(knob, random_) for name, knob in self._knobs}

    @override
    async def evaluate(self, candidate: Settings) -> float | Score:
        check_settings(self.space, candidate)
        return await self._score(candidate)

    def crossover(self, first: Settings, second: Settings) -> Settings:
        """Return a child that takes each knob from one parent or the other."""
        bits = self.context.rng.getrandbits(len(self._knobs))
        return {
            name: second[name] if bits >> i & 1 else first[name]
            for i, (name, _) in enumerate(self._knobs)
        }

    @override
    async def mutate(self, candidate: Settings) -> Settings:
        check_settings(self.space, candidate)
        context = self.context
        if context.crossed and context.rng.random() < PURE_CROSSING:
            return candidate
        child = dict(candidate)
        for index in _to_vary(len(self._knobs), context.rng):
            name, knob = self._knobs[index]
            child[name] = _vary(knob, child[name], context.rate, context.rng)
        return child


def _to_vary(count: int, random_: random.Random) -> list[int]:
    """Return the indices of the knobs to vary: mostly one, sometimes two or three."""
    chance = 0.5 / count
    indices = [i for i in range(count) if random_.random() < chance]
    return indices or [random_.randrange(count)]


def _vary(knob: Float | Int | Choice, value: Value, rate: float, random_: random.Random) -> Value:
    if isinstance(knob, Choice):
        others = [option for option in knob.options if option != value]
        return others[random_.randrange(len(others))]
    step = random_.gauss(0.0, LONGEST * rate * 10 ** -random_.uniform(0.0, DECADES))
    varied = knob.at(knob.share(value) + step)
    if isinstance(knob, Int) and varied == value:
        return min(knob.high, max(knob.low, value + random_.choice((-1, 1))))
    return varied
