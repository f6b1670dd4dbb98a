"""The loop: what is evaluated, who survives, what a result says, and how failures are kept."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Any, Literal, get_args

import pytest
from typing_extensions import override

from orbiter.train.errors import CallbackError, ConfigError, DataError, StateError, TrainingError
from orbiter.train.evolution import (
    Event,
    EvolutionConfig,
    EvolutionPhase,
    EvolutionPipeline,
    EvolutionResult,
    EvolutionStrategy,
    Score,
    StopReason,
)
from tests.evolution.problems import Bits, OneMax, population

Mode = Literal["generation", "steady"]


async def test_the_guides_own_example_runs_as_written() -> None:
    draw = random.Random(0)
    config = EvolutionConfig(epochs=5, population_size=20, selection_ratio=0.5, mutation_rate=0.1)

    class MyStrategy(EvolutionStrategy[float]):
        async def evaluate(self, candidate: float) -> float:
            return candidate

        async def select(self, population: Sequence[float], scores: Sequence[float]) -> list[float]:
            sorted_pop = sorted(zip(scores, population, strict=True), reverse=True)
            cutoff = int(len(population) * 0.5)
            return [p for _, p in sorted_pop[:cutoff]]

        async def mutate(self, candidate: float) -> float:
            return candidate + draw.random()

    pipeline = EvolutionPipeline(config=config, strategy=MyStrategy())
    result = await pipeline.run([draw.random() for _ in range(20)])
    assert result.best is not None
    assert result.best_score == result.best > 1.0
    assert result.epochs_completed == 5
    assert pipeline.phase is EvolutionPhase.COMPLETE


async def test_every_candidate_ever_made_is_scored_once_and_none_twice() -> None:
    strategy = OneMax()
    config = EvolutionConfig(epochs=6, population_size=10, selection_ratio=0.5)
    result = await EvolutionPipeline(config, strategy).run(population(10))
    assert result.evaluations == 10 + 5 * 5 == len(strategy.evaluated)
    assert len(set(strategy.evaluated)) == len(strategy.evaluated)
    assert all(len(member.scores) == 1 for member in result.members)


async def test_the_best_is_never_lost_even_to_a_select_that_throws_it_away() -> None:
    class Worst(OneMax):
        @override
        async def select(self, population: Sequence[Bits], scores: Sequence[float]) -> list[Bits]:
            order = sorted(range(len(scores)), key=scores.__getitem__)
            return [population[i] for i in order[:3]]

    result = await EvolutionPipeline(EvolutionConfig(epochs=8, population_size=8), Worst()).run(
        population(8)
    )
    scores = [record.best for record in result.history]
    assert scores == sorted(scores)
    assert result.best_score == max(m.score for m in result.members) == scores[-1]
    assert result.best in result.population


async def test_epochs_0_evaluates_nothing() -> None:
    strategy = OneMax()
    result = await EvolutionPipeline(EvolutionConfig(epochs=0), strategy).run(population(4))
    assert (strategy.evaluated, result.best, result.evaluations) == ([], None, 0)
    assert math.isnan(result.best_score)
    assert result.stop_reason is StopReason.EPOCHS


async def test_mutation_rate_0_only_selects() -> None:
    strategy = OneMax()
    config = EvolutionConfig(epochs=3, population_size=16, mutation_rate=0)
    result = await EvolutionPipeline(config, strategy).run(population(16))
    assert strategy.mutated == 0
    assert len(result.population) == 2
    assert result.stop_reason is StopReason.EPOCHS


async def test_a_short_population_is_filled_and_a_long_one_is_scored_whole() -> None:
    short, long = OneMax(), OneMax()
    config = EvolutionConfig(epochs=1, population_size=10)
    await EvolutionPipeline(config, short).run(population(3))
    await EvolutionPipeline(config, long).run(population(25))
    assert (len(short.evaluated), len(long.evaluated)) == (10, 25)


async def test_equal_candidates_share_one_evaluation_while_it_is_under_way() -> None:
    class Slow(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            await asyncio.sleep(0.02)
            return await super().evaluate(candidate)

    strategy = Slow()
    same = population(1)[0]
    config = EvolutionConfig(epochs=1, population_size=6, mutation_rate=0)
    result = await EvolutionPipeline(config, strategy).run([same, (*same, 0), same, same])
    assert len(strategy.evaluated) == 2
    assert result.cache_hits == 2


async def test_candidates_are_never_compared() -> None:
    class Opaque:
        def __init__(self, value: int) -> None:
            self.value = value

    class Flat(EvolutionStrategy[Opaque]):
        async def evaluate(self, candidate: Opaque) -> float:
            return 1.0

        async def mutate(self, candidate: Opaque) -> Opaque:
            return Opaque(candidate.value + 1)

    initial = [Opaque(i) for i in range(6)]
    config = EvolutionConfig(epochs=3, population_size=6)
    with pytest.warns(UserWarning, match="define `key`"):
        result = await EvolutionPipeline(config, Flat()).run(initial)
    assert result.best is initial[0], "of equal scores the oldest wins"


async def test_the_guides_select_on_tied_dicts_says_what_to_do() -> None:
    class Tied(EvolutionStrategy[dict[str, int]]):
        async def evaluate(self, candidate: dict[str, int]) -> float:
            return 1.0

        async def mutate(self, candidate: dict[str, int]) -> dict[str, int]:
            return {"x": candidate["x"] + self.context.rng.randrange(1, 1000)}

        async def select(
            self, population: Sequence[dict[str, int]], scores: Sequence[float]
        ) -> list[dict[str, int]]:
            return [p for _, p in sorted(zip(scores, population, strict=True), reverse=True)]

    with pytest.raises(CallbackError, match="sort by the score alone"):
        await EvolutionPipeline(EvolutionConfig(epochs=2), Tied()).run([{"x": 1}, {"x": 2}])


@pytest.mark.parametrize("bad", ["raise", "hang", "nan", "inf", "none", "text"])
@pytest.mark.parametrize("mode", ["generation", "steady"])
async def test_one_bad_evaluation_ends_nothing_and_outranks_nobody(bad: str, mode: Mode) -> None:
    unlucky = population(8)[3]

    class Faulty(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            if candidate != unlucky:
                return -1.0 - sum(candidate)
            if bad == "raise":
                raise KeyError("broken")
            if bad == "hang":
                await asyncio.sleep(60)
            return {"nan": math.nan, "inf": math.inf, "none": None, "text": "0.9"}[bad]  # type: ignore[return-value] # the fault itself

    config = EvolutionConfig(epochs=4, population_size=8, timeout=0.2, mode=mode)
    result = await EvolutionPipeline(config, Faulty()).run(population(8))
    failed = [member for member in result.members if member.error is not None]
    assert [member.candidate for member in failed] == [unlucky]
    assert result.failures == 1
    assert result.best_score < 0
    assert unlucky not in result.population
    expected = {"raise": "KeyError: 'broken'", "hang": "within 0.2 s"}.get(bad, "evaluate returned")
    assert expected in (failed[0].error or "")


async def test_a_plain_function_that_hangs_is_given_up_too() -> None:
    class Hanging(OneMax):
        def evaluate(self, candidate: Bits) -> float:  # type: ignore[override] # plain on purpose
            if candidate == population(8)[3]:
                time.sleep(0.5)
            return float(sum(candidate))

    config = EvolutionConfig(epochs=1, population_size=8, timeout=0.1)
    result = await EvolutionPipeline(config, Hanging()).run(population(8))
    assert result.failures == 1


@pytest.mark.parametrize("mode", ["generation", "steady"])
async def test_a_whole_failing_epoch_is_an_error_with_the_first_cause(mode: Mode) -> None:
    class Broken(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            raise ConnectionError("no server")

    config = EvolutionConfig(population_size=4, mode=mode)
    with pytest.raises(TrainingError, match=r"all 4 evaluations of epoch 1 failed.*no server"):
        await EvolutionPipeline(config, Broken()).run(population(4))


async def test_retries_help_after_an_exception_and_are_not_spent_on_nan() -> None:
    calls: list[Bits] = []

    class Flaky(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            calls.append(candidate)
            if sum(candidate) % 2:
                return math.nan
            if calls.count(candidate) < 2:
                raise ConnectionError
            return 1.0

    config = EvolutionConfig(epochs=1, population_size=2, retries=3, mutation_rate=0)
    even, odd = (1, 1, 0), (1, 0, 0)
    result = await EvolutionPipeline(config, Flaky()).run([even, odd])
    assert (calls.count(even), calls.count(odd)) == (2, 1)
    assert result.best == even


async def test_on_error_raise_ends_the_run_with_the_cause() -> None:
    class Broken(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            raise ConnectionError("no server")

    config = EvolutionConfig(on_error="raise")
    with pytest.raises(CallbackError, match=r"candidate 0.*no server"):
        await EvolutionPipeline(config, Broken()).run(population(4))


async def test_failing_mutations_are_data_until_all_of_them_fail() -> None:
    class Clumsy(OneMax):
        @override
        async def mutate(self, candidate: Bits) -> Bits:
            if self.context.rng.random() < 0.5:
                raise ValueError("slipped")
            return await super().mutate(candidate)

    class Unable(OneMax):
        @override
        async def mutate(self, candidate: Bits) -> Bits:
            raise ValueError("slipped")

    result = await EvolutionPipeline(EvolutionConfig(epochs=4, population_size=12), Clumsy()).run(
        population(12)
    )
    assert result.failures > 0
    assert result.epochs_completed == 4
    with pytest.raises(CallbackError, match="slipped"):
        await EvolutionPipeline(EvolutionConfig(epochs=2), Unable()).run(population(20))


@pytest.mark.parametrize("mode", ["generation", "steady"])
async def test_the_budget_of_evaluations_is_hard(mode: Mode) -> None:
    strategy = OneMax()
    config = EvolutionConfig(epochs=99, population_size=8, max_evaluations=21, mode=mode)
    result = await EvolutionPipeline(config, strategy).run(population(8))
    assert len(strategy.evaluated) == result.evaluations == 21
    assert result.stop_reason is StopReason.EVALUATIONS


@pytest.mark.parametrize("mode", ["generation", "steady"])
async def test_the_cost_never_passes_its_limit(mode: Mode) -> None:
    class Dear(OneMax):
        async def evaluate(self, candidate: Bits) -> Score:  # type: ignore[override] # says its cost
            await asyncio.sleep(0)
            return Score(sum(candidate), cost=0.3)

    config = EvolutionConfig(epochs=99, population_size=8, max_cost=5.0, mode=mode)
    result = await EvolutionPipeline(config, Dear()).run(population(8))
    assert 4.5 <= result.cost <= 5.0
    assert result.stop_reason is StopReason.COST


async def test_time_target_and_patience_end_a_run() -> None:
    class Slow(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            await asyncio.sleep(0.01)
            return 0.5

    base: dict[str, Any] = {"epochs": 999, "population_size": 6}

    async def run(strategy: OneMax, **limits: float) -> EvolutionResult[Bits]:
        config = EvolutionConfig(**base, **limits)  # type: ignore[arg-type] # limits of all kinds
        return await EvolutionPipeline(config, strategy).run(population(6))

    assert (await run(Slow(), max_seconds=0.1)).stop_reason is StopReason.TIME
    patient = await run(Slow(), patience=3)
    assert (patient.stop_reason, patient.epochs_completed) == (StopReason.PATIENCE, 4)
    reached = await run(OneMax(), target=0.8)
    assert reached.stop_reason is StopReason.TARGET
    assert reached.history[-2].best < 0.8 <= reached.best_score


@pytest.mark.parametrize("mode", ["generation", "steady"])
async def test_a_space_without_anything_new_ends_as_stagnant(mode: Mode) -> None:
    class TwoOnly(EvolutionStrategy[int]):
        async def evaluate(self, candidate: int) -> float:
            return candidate

        async def mutate(self, candidate: int) -> int:
            return 1 - candidate

    config = EvolutionConfig(epochs=99, population_size=4, mode=mode)
    result = await EvolutionPipeline(config, TwoOnly()).run([0])
    assert result.stop_reason is StopReason.STAGNANT
    assert (result.best, result.evaluations) == (1, 2)


async def test_concurrency_is_bounded_over_evaluate_and_mutate() -> None:
    running = peak = 0

    class Watched(OneMax):
        async def _watch(self) -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.002)
            running -= 1

        @override
        async def evaluate(self, candidate: Bits) -> float:
            await self._watch()
            return await super().evaluate(candidate)

        @override
        async def mutate(self, candidate: Bits) -> Bits:
            await self._watch()
            return await super().mutate(candidate)

    for mode in get_args(Mode):
        running = peak = 0
        config = EvolutionConfig(epochs=3, concurrency=5, mode=mode)
        await EvolutionPipeline(config, Watched()).run(population(20))
        assert peak == 5


async def test_the_same_result_at_any_concurrency_with_the_cache_on_or_off() -> None:
    class Uneven(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            await asyncio.sleep(0.001 * (sum(candidate) % 3))
            return await super().evaluate(candidate)

    async def run(concurrency: int, cache: bool) -> list[dict[str, Any]]:
        config = EvolutionConfig(
            epochs=5, population_size=12, concurrency=concurrency, cache=cache, seed=3
        )
        start = [*population(10), population(1)[0]]
        return (await EvolutionPipeline(config, Uneven()).run(start)).to_dicts()

    first = await run(1, True)
    assert [await run(c, k) for c in (1, 4, 32) for k in (True, False)] == [first] * 6


async def test_phases_follow_each_other_as_documented() -> None:
    heard: list[EvolutionPhase] = []

    def hear(event: Event) -> None:
        if event.kind == "phase":
            heard.append(event.phase)

    config = EvolutionConfig(epochs=2, population_size=4, on_event=hear)
    pipeline = EvolutionPipeline(config, OneMax())
    assert pipeline.phase is EvolutionPhase.INIT
    await pipeline.run(population(4))
    phase = EvolutionPhase
    assert heard == [
        phase.EVALUATING, phase.SELECTING, phase.MUTATING, phase.EVALUATING, phase.SELECTING,
        phase.COMPLETE,
    ]  # fmt: skip


async def test_cancelling_passes_and_the_pipeline_can_run_again() -> None:
    class Slow(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            await asyncio.sleep(5)
            return 1.0

    pipeline = EvolutionPipeline(EvolutionConfig(), Slow())
    task = asyncio.create_task(pipeline.run(population(4)))
    await asyncio.sleep(0.02)
    with pytest.raises(StateError, match="evaluating"):
        await pipeline.run(population(4))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pipeline.phase is EvolutionPhase.INIT


async def test_context_exists_only_inside_a_call() -> None:
    with pytest.raises(StateError, match="only while"):
        _ = OneMax().context


async def test_an_empty_population_and_a_wrong_strategy_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        await EvolutionPipeline(EvolutionConfig(), OneMax()).run([])
    with pytest.raises(ConfigError, match="got int"):
        EvolutionPipeline(EvolutionConfig(), 3)  # type: ignore[arg-type] # the fault itself


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1), ("epochs", True), ("population_size", 0), ("selection_ratio", 0),
        ("selection_ratio", 1.1), ("mutation_rate", -0.1), ("mutation_rate", math.nan),
        ("concurrency", 0), ("timeout", 0), ("max_evaluations", 0), ("mode", "stead"),
        ("elite", 99), ("min_delta", -1.0), ("max_cost", math.inf), ("seed", 1.5),
    ],
)  # fmt: skip
def test_a_bad_setting_names_the_field_and_the_value(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        EvolutionConfig(**{field: value})  # type: ignore[arg-type] # the fault itself


async def test_the_lineage_leads_from_an_initial_candidate_with_what_changed() -> None:
    class Longer(EvolutionStrategy[str]):
        async def evaluate(self, candidate: str) -> float:
            return len(candidate)

        async def mutate(self, candidate: str) -> str:
            return candidate + f"\nline {self.context.rng.randrange(10**9)}"

    result = await EvolutionPipeline(EvolutionConfig(epochs=3, population_size=4), Longer()).run(
        ["start"]
    )
    assert result.best is not None
    line = result.lineage(result.best)
    assert line[0].candidate == "start"
    assert line[-1].candidate == result.best
    assert all("+line" in ancestor.diff for ancestor in line[1:])
    with pytest.raises(DataError, match="no member"):
        result.lineage("unheard of")


async def test_pooling_tames_the_luckiest_and_says_how_sure_it_is() -> None:
    class Noisy(EvolutionStrategy[int]):
        async def evaluate(self, candidate: int) -> float:
            return self.context.rng.gauss(0.0, 1.0)

        async def mutate(self, candidate: int) -> int:
            return self.context.rng.randrange(10**9)

    async def best(contenders: int, seed: int) -> float:
        config = EvolutionConfig(epochs=10, contenders=contenders, seed=seed)
        result = await EvolutionPipeline(config, Noisy()).run(range(20))
        return result.best_score

    plain = [await best(0, seed) for seed in range(8)]
    pooled = [await best(10, seed) for seed in range(8)]
    assert sum(plain) / 8 > 2.0
    assert sum(pooled) < 0.6 * sum(plain)


async def test_replicates_average_and_the_holdout_is_scored_once() -> None:
    class Coin(EvolutionStrategy[int]):
        async def evaluate(self, candidate: int) -> float:
            return candidate + self.context.replicate

        async def mutate(self, candidate: int) -> int:
            return candidate - 1

    held: list[int] = []

    def holdout(candidate: int) -> float:
        held.append(candidate)
        return 0.25

    config = EvolutionConfig(epochs=2, population_size=3, replicates=3)
    result = await EvolutionPipeline(config, Coin(), holdout=holdout).run([5])
    assert result.best_score == 6.0
    assert result.best_interval is not None
    assert result.best_interval.n == 3
    assert (held, result.holdout_score) == ([5], 0.25)
