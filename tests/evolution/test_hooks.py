"""What a strategy may ask of the loop beyond evaluate, mutate and select."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, Score, StopReason
from tests.evolution.problems import Bits, OneMax, population


async def test_steady_mode_stops_at_the_target_not_at_the_end_of_the_epoch() -> None:
    strategy = OneMax()
    config = EvolutionConfig(epochs=99, mode="steady", concurrency=1, target=1.0)
    result = await EvolutionPipeline(config, strategy).run([(1, 1, 1), *population(9)])
    assert result.stop_reason is StopReason.TARGET
    assert len(strategy.evaluated) == 1


async def test_a_leader_that_fails_once_later_keeps_its_scores() -> None:
    class Flaky(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            if self.context.replicate == 1:
                raise ConnectionError("later")
            return await super().evaluate(candidate)

    config = EvolutionConfig(epochs=3, population_size=6, contenders=2)
    result = await EvolutionPipeline(config, Flaky()).run(population(6))
    assert result.failures > 0
    assert all(member.error is None for member in result.members)
    assert result.best_score > 0


async def test_a_strategy_may_choose_parents_and_sees_full_scores() -> None:
    class Worst(OneMax):
        seen: ClassVar[list[int]] = []

        @override
        def choose_parent(self, population: Sequence[Bits], scores: Sequence[Score]) -> int:
            self.seen.append(len(scores))
            return len(population) - 1

    for mode in ("generation", "steady"):
        config = EvolutionConfig(epochs=2, population_size=6, mode=mode, concurrency=1)
        result = await EvolutionPipeline(config, Worst()).run(population(6))
        assert any(member.parents for member in result.members)
    assert Worst.seen


async def test_renewal_replaces_everybody_and_still_keeps_the_best_ever() -> None:
    class Comma(OneMax):
        renews: ClassVar[bool] = True

    config = EvolutionConfig(epochs=4, population_size=6, elite=0)
    result = await EvolutionPipeline(config, Comma()).run(population(6))
    assert result.evaluations == 24
    assert result.best_score == max(member.score for member in result.members)


async def test_who_needs_scores_is_not_asked_to_vary_the_unscored() -> None:
    class Careful(OneMax):
        needs_scores: ClassVar[bool] = True

        @override
        async def mutate(self, candidate: Bits) -> Bits:
            assert self.context.parent_score is not None
            return await super().mutate(candidate)

    config = EvolutionConfig(epochs=3, population_size=6)
    result = await EvolutionPipeline(config, Careful()).run(population(1))
    assert result.failures == 0
    assert result.history[0].evaluations == 1
