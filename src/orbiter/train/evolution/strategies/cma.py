"""Covariance matrix adaptation: a numeric search that learns how the knobs depend on each other.

Hansen and Ostermeier 2001, https://doi.org/10.1162/106365601750190398, by the package `cma`. It
pays off if knobs depend on each other and hundreds of evaluations are affordable; on separable or
rugged problems `NumericEvolution` needs fewer. Choices are not supported: they have no covariance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar

from typing_extensions import override

from orbiter.train.errors import ConfigError, DataError, require
from orbiter.train.evolution.strategies.numeric import NumericEvolution
from orbiter.train.evolution.strategies.space import Choice, Float, Int, Settings, Space
from orbiter.train.evolution.strategy import EvolutionStrategy, Score

FIRST_DEVIATION = 0.3
"""Standard deviation of the first generation, as a share of each knob's range."""


class CMAEvolution(EvolutionStrategy[Settings]):
    """Searches a space of numbers by covariance matrix adaptation; needs the extra `cma`.

    Example::

        strategy = CMAEvolution({"x": Float(-5, 5), "y": Float(-5, 5)}, score)
        config = EvolutionConfig(epochs=40, population_size=12)
        pipeline = EvolutionPipeline(config=config, strategy=strategy)
        result = await pipeline.run(strategy.sample(12))

    The first generation is the initial population; the search starts from its best. An epoch is a
    generation, so `mode` must be "generation". `mutation_rate` has no effect above 0: the step
    size adapts itself. A search that has converged restarts from a random point.
    """

    renews: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True

    def __init__(
        self, space: Space, evaluate: Callable[[Settings], float | Score | Awaitable[float | Score]]
    ) -> None:
        """Set up a search.

        Args:
            space: knobs by name, at least two, each a Float or an Int.
            evaluate: scores settings, {name: value}; plain or async; higher is better.

        Raises:
            ConfigError: the space holds a Choice, or fewer than two knobs.
            MissingExtraError: the package `cma` is not installed.
        """
        self._numeric = NumericEvolution(space, evaluate)
        knobs: dict[str, Float | Int] = {}
        # Kept in the space's order, which fixes the order of the library's coordinates.
        for name, knob in space.items():
            if isinstance(knob, Choice):
                raise ConfigError(
                    f"space[{name!r}] is a Choice, which has no covariance with anything: use "
                    "NumericEvolution"
                )
            knobs[name] = knob
        if len(knobs) < 2:
            raise ConfigError("covariance needs two knobs or more: use NumericEvolution")
        self._knobs = knobs
        self._library = _library()
        self._search: Any = None
        self._asked: list[tuple[Settings, Any]] = []
        self._handed_out: dict[str, int] = {}

    def sample(self, count: int, *, seed: int = 0) -> list[Settings]:
        """Return settings from anywhere in the space, to start from."""
        return self._numeric.sample(count, seed=seed)

    @override
    async def evaluate(self, candidate: Settings) -> float | Score:
        return await self._numeric.evaluate(candidate)

    @override
    async def select(
        self, population: Sequence[Settings], scores: Sequence[float]
    ) -> Sequence[Settings]:
        """Learn from the generation, and ask for the next one."""
        # `select` is called once a generation, so the library gets the scores here.
        # The library minimises; here higher is better.
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        # A resumed or second run begins a new search.
        if self._search is None or self.context.epoch == 1:
            self._begin(population[order[0]], len(population))
        else:
            self._learn(population, scores)
        # Converged or stuck: a restart from a random point costs nothing that was learned here.
        if self._search.stop():
            self._begin(self._numeric.draw(self.context.rng), self._search.popsize)
        self._asked = [(self._settings(x), x) for x in self._search.ask()]
        self._handed_out = {}
        return [population[order[0]]]

    @override
    def choose_parent(self, population: Sequence[Settings], scores: Sequence[Score]) -> int | None:
        if self._search is None:
            raise ConfigError(
                "CMAEvolution works in generations, and must see the scores of the first one: use "
                "mode='generation'"
            )
        if len(self._handed_out) >= len(self._asked):
            raise ConfigError(
                f"CMAEvolution began with {len(self._asked)} candidates, so population_size must "
                f"be {len(self._asked)}: start it from strategy.sample(population_size)"
            )
        # By the child's name, since children are made concurrently.
        self._handed_out[self.context.child] = len(self._handed_out)
        return None

    @override
    async def mutate(self, candidate: Settings) -> Settings:
        """Return the next point of the generation."""
        return dict(self._asked[self._handed_out[self.context.child]][0])

    def _begin(self, start: Settings, size: int) -> None:
        if size < 4:
            raise ConfigError(f"CMAEvolution needs a population of 4 or more, got {size}")
        random_ = self._library_random()
        options = {
            # Every knob is searched as a share of its range, so one step size fits all.
            "bounds": [0, 1],
            "popsize": size,
            "verbose": -9,
            "verb_log": 0,
            "seed": math.nan,  # leaves numpy's global generator unchanged
            # The library would draw from NumPy's global generator, which a resumed run cannot
            # repeat.
            "randn": lambda *shape: random_.standard_normal(shape),
        }
        shares = [knob.share(_number(start[name])) for name, knob in self._knobs.items()]
        self._search = self._library.CMAEvolutionStrategy(shares, FIRST_DEVIATION, options)

    def _library_random(self) -> Any:  # noqa: ANN401 - numpy's Generator, which is loaded late
        import numpy as np

        return np.random.default_rng(self.context.rng.getrandbits(63))

    def _learn(self, population: Sequence[Settings], scores: Sequence[float]) -> None:
        """Report the scores to the search; a failed or repeated point counts as the worst."""
        known = {_name(settings): score for settings, score in zip(population, scores, strict=True)}
        # An infinite loss would break the library's ranking and covariance.
        worst = min((score for score in scores if math.isfinite(score)), default=0.0)
        # Asked points that were not scored count as the worst; `max` also replaces minus
        # infinity.
        losses = [-max(worst, known.get(_name(settings), worst)) for settings, _ in self._asked]
        self._search.tell([x for _, x in self._asked], losses)

    def _settings(self, shares: Sequence[float]) -> Settings:
        pairs = zip(self._knobs.items(), shares, strict=True)
        return {name: knob.at(float(share)) for (name, knob), share in pairs}


def _library() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cma warns if matplotlib is missing
        return require("cma", extra="cma")


def _name(settings: Settings) -> str:
    return repr(sorted(settings.items()))


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise DataError(f"CMAEvolution needs numbers, got {value!r:.80}")
    return float(value)
