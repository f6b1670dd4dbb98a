"""A run ends with exactly what was asked for or says why not, and its ledger adds up."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
from typing_extensions import override

from orbiter.train.errors import CallbackError, ConfigError, DataError, StateError
from orbiter.train.synthesis import (
    DataSynthesiser,
    NearDuplicateIndex,
    SynthesisConfig,
    SynthesisContext,
    SynthesisPipeline,
    SynthesisResult,
    TemplateSynthesiser,
    Verdict,
)
from orbiter.train.synthesis.pipeline.asking import Scorer
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem


def text(number: int) -> str:
    return f"question {number} asks what agent {number * 7} did in town {number * 13} and why so"


class Counting(DataSynthesiser):
    """Makes items numbered by the offset; every third repeats an earlier one."""

    def __init__(self, *, limit: int = 10**9, slow: bool = False, repeats: int = 3) -> None:
        self.limit, self.slow, self.repeats = limit, slow, repeats
        self.asked: list[tuple[int, int]] = []
        self.contexts: list[SynthesisContext] = []

    def original(self, number: int) -> int:
        return number // 2 if self.repeats and number % self.repeats == 2 else number

    @override
    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> list[TrajectoryItem]:
        assert context is not None
        self.asked.append((context.offset, count))
        self.contexts.append(context)
        rng = context.rng
        if self.slow:
            await asyncio.sleep(0.01 * rng.random())
        numbers = range(context.offset, min(context.offset + count, self.limit))
        return [
            TrajectoryItem(
                text(self.original(n)), "", (n * 37 % 101) / 100, {"n": n, "drawn": rng.random()}
            )
            for n in numbers
        ]


class Fixed(DataSynthesiser):
    """Answers with the same rows every time."""

    def __init__(self, *rows: object) -> None:
        self.rows = rows

    @override
    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> Sequence[TrajectoryItem]:
        return list(self.rows)  # type: ignore[arg-type]  # rows of any kind are what is tested


def check_ledger(result: SynthesisResult) -> None:
    assert result.generated_count == (
        len(result.items) + result.filtered_count + result.trimmed_count
    )
    assert result.filtered_count == sum(result.rejected.values())


async def run(
    step: DataSynthesiser, seeds: Sequence[TrajectoryItem] = (), **settings: object
) -> SynthesisResult:
    config = SynthesisConfig(**settings)  # type: ignore[arg-type]  # settings of several types
    result = await SynthesisPipeline(config=config).add_step(step).run(seeds)
    check_ledger(result)
    return result


@pytest.mark.parametrize("target", [1, 7, 100, 333])
@pytest.mark.parametrize("min_score", [None, 0.0, 0.7])
async def test_a_run_ends_with_exactly_the_target(target: int, min_score: float | None) -> None:
    result = await run(Counting(), target_size=target, min_score=min_score, max_candidates=10_000)
    assert (len(result.items), result.stop_reason) == (target, "target")
    assert all((item.reward or 0) >= (min_score or 0) for item in result.items)


async def test_no_two_items_are_close_and_none_is_close_to_a_seed() -> None:
    seeds = [TrajectoryItem(text(n), "") for n in range(10)]
    result = await run(Counting(), seeds, target_size=200, dedup_threshold=0.6)
    index = NearDuplicateIndex(0.6)
    texts = [f"{item.state}\n{item.action}" for item in [*seeds, *result.items]]
    assert index.admit(texts) == [None] * 210
    assert result.rejected["duplicate_of_seed"] >= 10
    assert result.rejected["duplicate"] > 20


async def test_without_a_threshold_repetitions_stay() -> None:
    item = TrajectoryItem("the same words again", "")
    result = await run(Fixed(item), target_size=5, dedup_threshold=None)
    assert list(result.items) == [item] * 5


async def test_the_result_is_the_same_at_any_concurrency() -> None:
    results = [
        await run(
            Counting(slow=True),
            target_size=150,
            min_score=0.5,
            concurrency=concurrency,
            batch_size=8,
        )
        for concurrency in (1, 3, 32)
    ]
    first = results[0]
    assert first.rounds > 1
    assert all(result == first for result in results)


async def test_no_more_calls_are_under_way_than_the_concurrency_says() -> None:
    now, most = 0, 0

    class Watched(Counting):
        @override
        async def generate(
            self, count: int, *, context: SynthesisContext | None = None
        ) -> list[TrajectoryItem]:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.002)
            now -= 1
            return await super().generate(count, context=context)

    await run(Watched(), target_size=100, batch_size=4, concurrency=5)
    assert most == 5


async def test_a_finite_source_ends_the_run() -> None:
    result = await run(Counting(limit=40), target_size=100)
    assert result.stop_reason == "exhausted"
    assert result.generated_count == 40


async def test_a_template_pipeline_stops_when_all_is_said() -> None:
    values = {"x": ["Python", "Rust", "Zig"]}
    result = await run(TemplateSynthesiser(["Explain {x} in simple terms"], values))
    assert (len(result.items), result.stop_reason, result.generated_count) == (3, "exhausted", 3)


async def test_a_source_that_only_repeats_itself_is_given_up() -> None:
    result = await run(
        Fixed(TrajectoryItem("one and the same thing", "")), target_size=50, patience=2
    )
    assert (len(result.items), result.stop_reason, result.rounds) == (1, "exhausted", 3)


async def test_never_more_candidates_than_allowed() -> None:
    result = await run(Counting(), target_size=50, min_score=0.95, max_candidates=120)
    assert result.stop_reason == "max_candidates"
    assert result.generated_count == 120
    assert 0 < len(result.items) < 50


async def test_seeds_below_the_score_are_not_used_and_counted_apart() -> None:
    seeds = [TrajectoryItem(text(n), "", reward) for n, reward in enumerate([0.1, 0.9, None])]
    step = Counting()
    result = await run(step, seeds, target_size=10, min_score=0.5)
    assert (result.seed_count, result.unused_seed_count) == (2, 1)
    assert list(step.contexts[0].seeds) == seeds[1:]
    assert result.filtered_count < result.generated_count


@pytest.mark.parametrize("seeds", ["mappings", "dataset", "none"])
async def test_seeds_may_be_of_any_kind(seeds: str) -> None:
    item = TrajectoryItem("what is asked", "what is said", 0.5, task_id="t")
    rows: list[dict[str, object]] = [
        {"input": "what is asked", "output": "what is said", "score": 0.5, "task_id": "t"}
    ]
    dataset = TrajectoryDataset()
    dataset.capture(item)
    step = Counting()
    pipeline = SynthesisPipeline(SynthesisConfig(target_size=3)).add_step(step)
    if seeds == "mappings":
        await pipeline.run(rows)
    elif seeds == "dataset":
        await pipeline.run(dataset)
    else:
        await pipeline.run()
    assert list(step.contexts[0].seeds) == ([] if seeds == "none" else [item])


async def test_a_step_sees_what_was_accepted_in_earlier_rounds() -> None:
    step = Counting()
    result = await run(step, target_size=60, min_score=0.5)
    last = step.contexts[-1]
    assert step.contexts[0].accepted == ()
    assert last.round == result.rounds - 1 > 0
    assert list(last.accepted) == list(result.items[: len(last.accepted)])
    assert len(last.accepted) > 0


class Answering(DataSynthesiser):
    """Answers the items of the step before, twice each."""

    @override
    async def generate(  # type: ignore[override]  # an async iterator is welcome too
        self, count: int, *, context: SynthesisContext | None = None
    ) -> AsyncIterator[TrajectoryItem]:
        assert context is not None
        assert count == len(context.items)
        for item in context.items:
            for which in range(2):
                yield TrajectoryItem(item.state, f"answer {which} to {item.state}", 0.5)


async def test_steps_form_a_chain_and_may_stream() -> None:
    pipeline = SynthesisPipeline(SynthesisConfig(target_size=40, batch_size=8))
    pipeline.add_step(Counting(repeats=0)).add_step(Answering())
    result = await pipeline.run()
    check_ledger(result)
    assert result.items[1].action == f"answer 1 to {text(0)}"
    made = list(result.made_by_step.values())
    assert made[1] == result.generated_count == 2 * made[0]
    assert len(result.items) == 40


async def test_what_is_no_item_is_rejected_as_invalid() -> None:
    step = Fixed(
        3,
        {"neither": "nor"},
        {"input": "  "},
        {"input": "x", "score": float("nan")},
        {"input": "a fine one", "tag": 1},
    )
    result = await run(step, target_size=1)
    assert result.rejected == {"invalid": 4}
    assert [rejection.item for rejection in result.rejections] == [None] * 4
    assert result.items[0] == TrajectoryItem("a fine one", "", None, {"tag": 1})


async def test_a_validator_refuses_candidates() -> None:
    config = SynthesisConfig(target_size=20)
    pipeline = SynthesisPipeline(config, validator=lambda item: item.metadata["n"] != 5)
    result = await pipeline.add_step(Counting()).run()
    assert result.rejected["invalid"] == 1
    assert all(item.metadata["n"] != 5 for item in result.items)


@pytest.mark.parametrize("kind", ["sync", "async", "verdict"])
async def test_a_scorer_scores_what_has_no_score(kind: str) -> None:
    def score(item: TrajectoryItem) -> float:
        return 0.9 if "good" in item.state else 0.1

    async def score_async(item: TrajectoryItem) -> float:
        await asyncio.sleep(0)
        return score(item)

    def verdict(item: TrajectoryItem) -> Verdict:
        return Verdict(score(item), "because", 0.25)

    scorers: dict[str, Scorer] = {"sync": score, "async": score_async, "verdict": verdict}
    step = Fixed({"input": "a good one"}, {"input": "a bad one"}, {"input": "own", "score": 0.6})
    config = SynthesisConfig(target_size=2, min_score=0.5)
    result = await SynthesisPipeline(config, scorer=scorers[kind]).add_step(step).run()
    assert [item.reward for item in result.items] == [0.9, 0.6]
    assert result.rejected == {"score": 1}
    if kind == "verdict":
        assert result.items[0].metadata == {"score_reason": "because"}
        assert result.cost == 0.5


async def test_unscored_candidates_pass_with_one_warning_and_a_count() -> None:
    class Unscored(Counting):
        @override
        async def generate(
            self, count: int, *, context: SynthesisContext | None = None
        ) -> list[TrajectoryItem]:
            made = await super().generate(count, context=context)
            return [TrajectoryItem(item.state, "") for item in made]

    with pytest.warns(UserWarning, match="there is no scorer") as warned:
        result = await run(Unscored(repeats=0), target_size=30, min_score=0.5)
    assert len(warned) == 1
    assert (len(result.items), result.unscored_count) == (30, 30)
    assert (await run(Unscored(), target_size=5)).unscored_count == 0
    dropped = await run(Unscored(), target_size=5, min_score=0.5, unscored="drop")
    assert set(dropped.rejected) == {"unscored"}
    with pytest.raises(DataError, match="unscored"):
        await run(Unscored(), target_size=5, min_score=0.5, unscored="raise")


async def test_a_budget_stops_the_asking() -> None:
    class Paid(Counting):
        @override
        async def generate(
            self, count: int, *, context: SynthesisContext | None = None
        ) -> list[TrajectoryItem]:
            assert context is not None
            context.spend(0.5)
            return await super().generate(count, context=context)

    step = Paid(repeats=0)
    result = await run(step, target_size=500, batch_size=10, max_cost=3.0, concurrency=1)
    assert (result.stop_reason, result.cost, len(step.asked)) == ("budget", 3.0, 6)
    assert len(result.items) == 60


async def test_stop_ends_the_run_with_what_is_there() -> None:
    pipeline = SynthesisPipeline(SynthesisConfig(target_size=1000, batch_size=5))
    pipeline.add_step(Counting(slow=True))
    task = asyncio.create_task(pipeline.run())
    await asyncio.sleep(0.1)
    pipeline.stop()
    result = await task
    check_ledger(result)
    assert result.stop_reason == "cancelled"
    assert 0 < len(result.items) < 1000
    pipeline.stop()


async def test_ctrl_c_ends_the_run_with_what_is_there() -> None:
    pipeline = SynthesisPipeline(SynthesisConfig(target_size=100_000, batch_size=5))
    pipeline.add_step(Counting(slow=True))
    former = signal.getsignal(signal.SIGINT)
    asyncio.get_running_loop().call_later(0.1, signal.raise_signal, signal.SIGINT)
    result = await pipeline.run()
    assert result.stop_reason == "cancelled"
    assert len(result.items) > 0
    assert signal.getsignal(signal.SIGINT) is former


async def test_after_a_run_ctrl_c_means_what_it_meant_before() -> None:
    former = signal.getsignal(signal.SIGINT)
    await run(Counting(), target_size=3)
    assert signal.getsignal(signal.SIGINT) is former


async def test_cancelling_the_task_propagates_and_leaves_nothing_running() -> None:
    pipeline = SynthesisPipeline(SynthesisConfig(target_size=1000, batch_size=5))
    pipeline.add_step(Counting(slow=True))
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pipeline.run()
    assert asyncio.all_tasks() == before
    assert pipeline.result is not None
    check_ledger(pipeline.result)


async def test_items_stream_as_they_are_accepted() -> None:
    pipeline = SynthesisPipeline(SynthesisConfig(target_size=30, batch_size=5))
    step = Counting()
    pipeline.add_step(step)
    seen = []
    async with contextlib.aclosing(pipeline.stream()) as stream:
        async for item in stream:
            seen.append(item)
            if len(seen) == 12:
                break
    assert pipeline.result is not None
    assert list(pipeline.result.items) == seen
    assert pipeline.result.stop_reason == "cancelled"
    assert [item async for item in pipeline.stream()][:12] == seen
    assert len(pipeline.result.items) == 30


async def test_one_pipeline_runs_once_at_a_time() -> None:
    pipeline = SynthesisPipeline(SynthesisConfig(target_size=10)).add_step(Counting())
    async with contextlib.aclosing(pipeline.stream()) as stream:
        await anext(stream)
        with pytest.raises(StateError, match="running"):
            await pipeline.run()
    assert len((await pipeline.run()).items) == 10


class Failing(Counting):
    @override
    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> list[TrajectoryItem]:
        assert context is not None
        if context.offset == 16:
            raise RuntimeError("the line is dead")
        return await super().generate(count, context=context)


async def test_a_failing_step_ends_the_run_and_is_named() -> None:
    with pytest.raises(CallbackError, match=r"Failing.generate raised RuntimeError: the line"):
        await run(Failing(), target_size=50)


async def test_failures_can_be_left_out_and_are_told() -> None:
    result = await run(Failing(repeats=0), target_size=50, on_error="drop")
    assert (len(result.items), result.stop_reason) == (50, "target")
    assert len(result.failures) == 1
    assert "the line is dead" in result.failures[0]

    def picky(item: TrajectoryItem) -> float:
        if "good" not in item.state:
            raise ValueError("cannot tell")
        return 1.0

    config = SynthesisConfig(target_size=1, on_error="drop")
    step = Fixed({"input": "bad"}, {"input": "good"})
    result = await SynthesisPipeline(config, scorer=picky).add_step(step).run()
    assert result.rejected == {"failed": 1}
    assert len(result.failures) == 1


@pytest.mark.parametrize("answer", [float("nan"), "high", True])
async def test_a_scorer_that_answers_nonsense_is_named(answer: object) -> None:
    def scorer(item: TrajectoryItem) -> float:
        return answer  # type: ignore[return-value]  # what is refused

    pipeline = SynthesisPipeline(SynthesisConfig(target_size=1), scorer=scorer)
    pipeline.add_step(Fixed({"input": "x"}))
    if answer is True:
        assert (await pipeline.run()).items[0].reward == 1.0
    else:
        with pytest.raises(CallbackError, match="scorer must answer"):
            await pipeline.run()


def test_only_synthesisers_that_can_be_asked_are_steps() -> None:
    class Odd(DataSynthesiser):
        @override
        async def generate(self, count: int) -> list[TrajectoryItem]:  # type: ignore[override]
            return []

    with pytest.raises(ConfigError, match="DataSynthesiser"):
        SynthesisPipeline().add_step(len)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ConfigError, match="context"):
        SynthesisPipeline().add_step(Odd())


async def test_a_pipeline_without_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="no step"):
        await SynthesisPipeline().run()


async def test_an_answer_that_is_no_list_is_named() -> None:
    class Wrong(Counting):
        @override
        async def generate(
            self, count: int, *, context: SynthesisContext | None = None
        ) -> list[TrajectoryItem]:
            return "items"  # type: ignore[return-value]  # what is refused

    with pytest.raises(CallbackError, match="must return a list"):
        await run(Wrong())


BAD: list[dict[str, object]] = [
    {"target_size": 0},
    {"batch_size": 0},
    {"concurrency": 0},
    {"patience": 0},
    {"min_score": float("nan")},
    {"dedup_threshold": 0.0},
    {"dedup_threshold": 1.1},
    {"unscored": "maybe"},
    {"on_error": "ignore"},
    {"target_size": 10, "max_candidates": 9},
    {"max_cost": 0.0},
    {"max_cost": float("nan")},
]


@pytest.mark.parametrize("settings", BAD)
def test_a_setting_that_cannot_mean_anything_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(reversed(settings))):
        SynthesisConfig(**settings)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("terminal", [True, False])
async def test_progress_shows_on_a_terminal_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    await run(Counting(), target_size=5)
    assert ("accepted" in screen.getvalue()) is terminal


async def test_repetitions_of_seeds_and_of_items_are_told_apart() -> None:
    first, second = TrajectoryItem("a first thing said", ""), TrajectoryItem("another was", "")
    result = await run(Fixed(second, second, first), [first], target_size=5, patience=1)
    assert [rejection.reason for rejection in result.rejections[:2]] == [
        "duplicate",
        "duplicate_of_seed",
    ]


async def test_a_score_that_equals_the_least_is_enough() -> None:
    result = await run(Fixed({"input": "x", "score": 0.7}), target_size=1, min_score=0.7)
    assert len(result.items) == 1


async def test_a_barren_round_is_followed_by_a_larger_one() -> None:
    result = await run(Counting(), target_size=10, min_score=2.0)
    assert (result.stop_reason, result.generated_count) == ("exhausted", 10 + 20 + 40)


async def test_a_dry_source_is_asked_once_more_and_not_again() -> None:
    result = await run(Counting(limit=40), target_size=100)
    assert result.rounds == 2


async def test_a_slow_batch_holds_up_no_other_and_what_was_made_is_counted() -> None:
    others_made = asyncio.Event()

    class SlowFirst(Counting):
        @override
        async def generate(
            self, count: int, *, context: SynthesisContext | None = None
        ) -> list[TrajectoryItem]:
            made = await super().generate(count, context=context)
            if made[0].metadata["n"] == 0:
                await asyncio.Event().wait()
            if len(self.asked) == 12:
                others_made.set()
            return made

    config = SynthesisConfig(target_size=500, batch_size=5, concurrency=2)
    pipeline = SynthesisPipeline(config).add_step(SlowFirst())
    task = asyncio.create_task(pipeline.run())
    await asyncio.wait_for(others_made.wait(), 5)
    await asyncio.sleep(0.01)
    pipeline.stop()
    result = await task
    check_ledger(result)
    assert len(result.items) == 0
    assert result.generated_count == result.trimmed_count >= 50


async def test_a_cost_that_is_none_is_refused() -> None:
    class Odd(Counting):
        @override
        async def generate(
            self, count: int, *, context: SynthesisContext | None = None
        ) -> list[TrajectoryItem]:
            assert context is not None
            context.spend(float("nan"))
            return []

    with pytest.raises(DataError, match="cost"):
        await run(Odd())
