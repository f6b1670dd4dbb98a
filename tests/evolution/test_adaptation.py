"""Covariance matrix adaptation inside the loop: it learns, resumes, and says what it cannot do."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.evolution import (
    Choice,
    CMAEvolution,
    EvolutionConfig,
    EvolutionPipeline,
    EvolutionResult,
    Float,
    Int,
    NumericEvolution,
)
from orbiter.train.evolution.strategies.space import Settings

DIMENSIONS = 6
SPACE = {f"x{i}": Float(-5, 5) for i in range(DIMENSIONS)}


def ridge(settings: Settings) -> float:
    """A narrow valley along the diagonal, away from the middle: no knob helps alone."""
    x = [float(settings[f"x{i}"]) - 1.5 for i in range(DIMENSIONS)]
    mean = sum(x) / DIMENSIONS
    return -(1000 * sum((value - mean) ** 2 for value in x) + sum(value**2 for value in x))


async def search(strategy: CMAEvolution, **settings: object) -> EvolutionResult[Settings]:
    values: dict[str, object] = {"epochs": 120, "population_size": 12, "seed": 1, **settings}
    config = EvolutionConfig(**values)  # type: ignore[arg-type] # keywords by name
    return await EvolutionPipeline(config, strategy).run(strategy.sample(12, seed=1))


async def test_knobs_that_depend_on_each_other_are_learnt_together() -> None:
    adapted = await search(CMAEvolution(SPACE, ridge))
    separate = NumericEvolution(SPACE, ridge)
    config = EvolutionConfig(epochs=120, population_size=12, seed=1)
    plain = await EvolutionPipeline(config, separate).run(separate.sample(12, seed=1))
    assert adapted.best_score > -0.1
    assert adapted.best_score > plain.best_score / 10


@pytest.mark.parametrize("concurrency", [1, 7])
async def test_the_result_does_not_depend_on_concurrency(concurrency: int) -> None:
    result = await search(CMAEvolution(SPACE, ridge), epochs=8, concurrency=concurrency)
    again = await search(CMAEvolution(SPACE, ridge), epochs=8)
    assert result.best == again.best
    assert [m.candidate for m in result.members] == [m.candidate for m in again.members]


async def test_a_resumed_search_makes_the_same_points(tmp_path: Path) -> None:
    whole = await search(CMAEvolution(SPACE, ridge), epochs=10)
    await search(CMAEvolution(SPACE, ridge), epochs=10, max_evaluations=65, run_dir=tmp_path)
    resumed = await search(CMAEvolution(SPACE, ridge), epochs=10, run_dir=tmp_path)
    assert [m.candidate for m in resumed.members] == [m.candidate for m in whole.members]
    assert resumed.best_score == whole.best_score


async def test_points_stay_in_bounds_and_whole_numbers_whole() -> None:
    space: dict[str, Float | Int | Choice] = {
        "rate": Float(1e-5, 1e-1, log=True),
        "layers": Int(1, 8),
    }

    def score(settings: Settings) -> float:
        assert isinstance(settings["layers"], int)
        return -abs(math.log10(float(settings["rate"])) + 3) - abs(settings["layers"] - 8)

    strategy = CMAEvolution(space, score)
    result = await search(strategy, epochs=25)
    assert result.failures == 0
    assert result.best is not None
    assert result.best["layers"] == 8
    assert abs(math.log10(float(result.best["rate"])) + 3) < 0.05


async def test_failed_points_count_as_the_worst_of_their_generation() -> None:
    def brittle(settings: Settings) -> float:
        if float(settings["x0"]) < -2:
            raise RuntimeError("out of memory")
        return ridge(settings)

    result = await search(CMAEvolution(SPACE, brittle))
    assert result.failures > 0
    assert result.best_score > -1.0


async def test_numpys_own_generator_is_left_alone() -> None:
    import numpy as np

    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    await search(CMAEvolution(SPACE, ridge), epochs=3)
    assert np.random.random() == expected


def test_a_choice_or_a_single_knob_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'kind'.*NumericEvolution"):
        CMAEvolution({"kind": Choice(["a", "b"]), "x": Float(0, 1)}, ridge)
    with pytest.raises(ConfigError, match="two knobs"):
        CMAEvolution({"x": Float(0, 1)}, ridge)


async def test_a_population_of_another_size_or_steady_mode_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"population_size must be 12"):
        await search(CMAEvolution(SPACE, ridge), population_size=20)
    with pytest.raises(ConfigError, match="mode='generation'"):
        await search(CMAEvolution(SPACE, ridge), mode="steady")
