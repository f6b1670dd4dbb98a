"""A bad day: what fails costs what failed, is never taken for a result, and is named at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from typing_extensions import override

from orbiter.train.errors import CallbackError, ConfigError, DataError, TrainingError
from orbiter.train.evolution import (
    CallableEvolution,
    Choice,
    EvolutionConfig,
    EvolutionPipeline,
    EvolutionResult,
    EvolutionStrategy,
    NumericEvolution,
    PromptEvolution,
    Score,
    StopReason,
    Verdict,
)
from orbiter.train.llm import BudgetError, ChatError
from tests.evolution.problems import Bits, OneMax, population

Mode = Literal["generation", "steady"]
MODES = ["generation", "steady"]


# --- a failure is not a result --------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_what_failed_is_tried_again_when_the_run_is_resumed(
    mode: Mode, tmp_path: Path
) -> None:
    calls: list[Bits] = []

    class Server(OneMax):
        up = False

        @override
        async def evaluate(self, candidate: Bits) -> float:
            calls.append(candidate)
            if not Server.up and len(calls) % 2:
                raise ConnectionError("401 wrong key")
            return await super().evaluate(candidate)

    config = EvolutionConfig(
        epochs=1, population_size=8, run_dir=tmp_path, mode=mode, concurrency=1
    )
    first = await EvolutionPipeline(config, Server()).run(population(8))
    assert first.failures == 4
    Server.up = True
    second = await EvolutionPipeline(config, Server()).run(population(8))
    assert (second.failures, len(calls)) == (0, 12), "four scores are kept, four are tried again"
    assert all(member.scores for member in second.members)


async def test_a_whole_failed_run_can_be_resumed_once_the_key_is_right(tmp_path: Path) -> None:
    up: list[bool] = []

    async def score(candidate: str) -> float:
        if not up:
            raise ConnectionError("401 wrong key")
        return float(len(candidate))

    async def run() -> EvolutionResult[str]:
        config = EvolutionConfig(epochs=1, population_size=2, run_dir=tmp_path)
        strategy = CallableEvolution(score, lambda c, _: c + "a")
        return await EvolutionPipeline(config, strategy).run(["x"])

    with pytest.raises(TrainingError, match="wrong key"):
        await run()
    up.append(True)
    assert (await run()).best == "xa"


async def test_only_the_failed_instances_of_a_candidate_are_tried_again(tmp_path: Path) -> None:
    down = True
    asked: list[int] = []

    async def agent(_prompt: object, task: int) -> str:
        asked.append(task)
        if down and task % 3 == 0:
            raise ConnectionError("reset by peer")
        return "ok"

    async def run() -> EvolutionResult[Any]:
        strategy = PromptEvolution(agent, range(9), lambda _task, _output: 1.0, _never_asked)
        config = EvolutionConfig(epochs=1, population_size=1, run_dir=tmp_path)
        return await EvolutionPipeline(config, strategy).run(["seed"])

    first = await run()
    assert first.best_score == pytest.approx(6 / 9)
    assert first.failures == 3
    asked.clear()
    down = False
    second = await run()
    assert (second.best_score, second.failures) == (1.0, 0)
    assert sorted(asked) == [0, 3, 6]
    assert second.cost == 9 + 3, "what the failures cost is not forgotten"


async def _never_asked(_messages: object) -> str:
    raise AssertionError


# --- the same folder, another run -----------------------------------------------------------------


def _length(_task: object, output: object) -> float:
    return float(len(str(output)))


def _is_right(_task: object, output: object) -> float:
    return float(output == "right")


async def _echo(_prompt: object, task: object) -> object:
    return task


async def _shout(_prompt: object, task: object) -> object:
    return str(task).upper()


class _Model:
    """A reflecting model that says what it is."""

    def __init__(self, name: str) -> None:
        self.fingerprint = name

    async def __call__(self, messages: object) -> str:
        return "<instructions>x</instructions>"


class _Rubric:
    """A metric with a setting of its own and a log that grows."""

    def __init__(self, rubric: str) -> None:
        self.rubric = rubric
        self.log: list[object] = []

    def __call__(self, task: object, output: object) -> float:
        self.log.append(output)
        return float(self.rubric in str(output))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tasks": ["wrong"] * 3}, "instances changed"),
        ({"agent": _shout}, "agent changed"),
        ({"metric": _length}, "metric changed"),
        ({"metric": lambda _task, output: float(output == "left")}, "metric changed"),
        ({"model": _Model("other")}, "model changed"),
        ({"max_chars": 10}, "limits changed"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"start": "another"}, "initial changed"),
    ],
)
async def test_another_question_is_refused_by_the_name_of_what_changed(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    async def run(
        *,
        tasks: Sequence[str] = ("right",),
        agent: Any = _echo,  # noqa: ANN401 - the changes are of all kinds
        metric: Any = _is_right,  # noqa: ANN401
        model: Any = _Model("one"),  # noqa: ANN401, B008
        max_chars: int = 100,
        seed: int = 0,
        start: str = "seed",
    ) -> EvolutionResult[Any]:
        strategy = PromptEvolution(agent, tasks, metric, model, max_chars=max_chars)
        config = EvolutionConfig(epochs=1, population_size=1, run_dir=tmp_path, seed=seed)
        return await EvolutionPipeline(config, strategy).run([start])

    await run()
    await run()  # the same again is taken up
    with pytest.raises(ConfigError, match=named):
        await run(**change)


async def test_a_rubric_in_a_metric_counts_and_its_log_does_not(tmp_path: Path) -> None:
    async def run(metric: _Rubric) -> None:
        strategy = PromptEvolution(_echo, ["right"], metric, _Model("one"))
        config = EvolutionConfig(epochs=1, population_size=1, run_dir=tmp_path)
        await EvolutionPipeline(config, strategy).run(["seed"])

    lenient = _Rubric("r")
    await run(lenient)
    assert lenient.log
    await run(lenient)
    await run(_Rubric("r"))
    with pytest.raises(ConfigError, match="metric changed"):
        await run(_Rubric("strict"))


async def test_a_strategys_own_attributes_count_but_not_those_that_its_methods_change(
    tmp_path: Path,
) -> None:
    class Own(EvolutionStrategy[str]):
        def __init__(self, tasks: list[str], bonus: int = 0) -> None:
            self.tasks, self.bonus = tasks, bonus
            self.calls, self.seen, self.by_task = 0, [""], {"": 0}

        async def evaluate(self, candidate: str) -> float:
            self.calls += 1
            self.seen.append(candidate)
            self.by_task[candidate] = 1
            return len(candidate) + len(self.tasks) + self.bonus

        async def mutate(self, candidate: str) -> str:
            return candidate + "a"

    async def run(strategy: Own) -> None:
        config = EvolutionConfig(epochs=1, population_size=2, run_dir=tmp_path)
        await EvolutionPipeline(config, strategy).run(["x"])

    used = Own(["a"])
    await run(used)
    await run(used)
    assert used.calls == 2
    with pytest.raises(ConfigError, match=r"strategy\.tasks changed"):
        await run(Own(["b"]))
    with pytest.raises(ConfigError, match=r"strategy\.bonus changed"):
        await run(Own(["a"], bonus=1))


# --- one failure costs one candidate --------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_one_task_that_raises_is_one_failed_instance(mode: Mode) -> None:
    async def agent(_prompt: object, task: int) -> str:
        if task == 7:
            raise ValueError("context window exceeded")
        return "ok"

    async def run(on_error: Literal["drop", "raise"]) -> EvolutionResult[Any]:
        strategy = PromptEvolution(agent, range(100), lambda _t, _o: 1.0, _Model("one"))
        config = EvolutionConfig(epochs=1, population_size=1, mode=mode, on_error=on_error)
        return await EvolutionPipeline(config, strategy).run(["seed"])

    result = await run("drop")
    assert (result.best_score, result.failures) == (0.99, 1)
    failed = result.members[0].scores[0].failed or {}
    assert list(failed) == ["7"]
    assert "context window exceeded" in failed["7"]
    with pytest.raises(CallbackError, match=r"instance '7'.*context window exceeded"):
        await run("raise")


@pytest.mark.parametrize("bad", [float("nan"), "high", None, [1], Verdict(float("inf"))])
async def test_a_metric_without_a_number_fails_its_instance_alone(bad: object) -> None:
    def metric(task: int, _output: object) -> Any:  # noqa: ANN401 - the fault itself
        return 1.0 if task else bad

    strategy = PromptEvolution(_echo, range(4), metric, _Model("one"))
    config = EvolutionConfig(epochs=1, population_size=1)
    result = await EvolutionPipeline(config, strategy).run(["seed"])
    assert (result.best_score, result.failures) == (0.75, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["evaluate", "mutate"])
async def test_an_endpoint_that_dies_leaves_the_best_so_far_and_the_cause(
    mode: Mode, part: str
) -> None:
    class Dying(OneMax):
        async def _ask(self) -> None:
            if len(self.evaluated) > 12:
                raise ChatError("the endpoint has answered nobody", kind="connection")

        @override
        async def evaluate(self, candidate: Bits) -> float:
            if part == "evaluate":
                await self._ask()
            return await super().evaluate(candidate)

        @override
        async def mutate(self, candidate: Bits) -> Bits:
            if part == "mutate":
                await self._ask()
            return await super().mutate(candidate)

    config = EvolutionConfig(epochs=99, population_size=6, mode=mode, concurrency=1)
    result = await asyncio.wait_for(EvolutionPipeline(config, Dying()).run(population(6)), 30)
    assert result.stop_reason is StopReason.FAILURES
    assert "answered nobody" in result.stop_cause
    assert "answered nobody" in str(result)
    assert result.best_score == max(m.score for m in result.members)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["evaluate", "mutate"])
async def test_a_spent_budget_ends_the_run_with_its_best(mode: Mode, part: str) -> None:
    class Paying(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            if part == "evaluate" and len(self.evaluated) >= 9:
                raise BudgetError("5 of the budget of 5 is spent")
            return await super().evaluate(candidate)

        @override
        async def mutate(self, candidate: Bits) -> Bits:
            if part == "mutate" and len(self.evaluated) >= 9:
                raise BudgetError("5 of the budget of 5 is spent")
            return await super().mutate(candidate)

    config = EvolutionConfig(epochs=99, population_size=6, mode=mode)
    result = await EvolutionPipeline(config, Paying()).run(population(6))
    assert result.stop_reason is StopReason.BUDGET
    assert "is spent" in result.stop_cause
    assert result.failures == 0, "not asking is no failure"
    assert result.best_score == max(m.score for m in result.members)


async def test_one_failed_mutation_is_tried_again_and_then_skipped() -> None:
    asked: list[int] = []

    async def hiccup(_messages: object) -> str:
        asked.append(1)
        if len(asked) in (2, 4, 5):
            raise ConnectionError("hiccup")
        return f"<instructions>better {'x' * len(asked)}</instructions>"

    async def agent(prompt: object, _task: str) -> object:
        return prompt

    strategy = PromptEvolution(
        agent, ["a"], lambda _t, output: min(0.9, len(str(output)) / 100), hiccup
    )
    config = EvolutionConfig(epochs=6, population_size=2)
    result = await EvolutionPipeline(config, strategy).run(["seed"])
    assert result.stop_reason is StopReason.EPOCHS
    assert result.failures == 1, "the hiccup at 2 was cured by another try, those at 4 and 5 not"
    assert len(result.members) == 5


@pytest.mark.parametrize("mode", MODES)
async def test_a_short_initial_population_that_fails_is_a_named_error(mode: Mode) -> None:
    class Broken(OneMax):
        needs_scores = True

        @override
        async def evaluate(self, candidate: Bits) -> float:
            raise ConnectionError("no server")

    with pytest.raises(TrainingError, match=r"all 3 evaluations.*no server"):
        await EvolutionPipeline(EvolutionConfig(mode=mode), Broken()).run(population(3))


# --- odd candidates and odd answers ---------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_mutate_that_returns_none_is_a_named_error(mode: Mode) -> None:
    strategy = CallableEvolution[Any](lambda c: float(len(c)), lambda _c, _x: None)
    with pytest.raises(CallbackError, match="mutate returned None"):
        await EvolutionPipeline(EvolutionConfig(mode=mode), strategy).run(["a"])


async def test_none_among_the_initial_candidates_is_named() -> None:
    with pytest.raises(DataError, match="candidate 1 of the initial population is None"):
        await EvolutionPipeline(EvolutionConfig(), OneMax()).run([(1, 0), None])  # type: ignore[list-item] # the fault itself


@pytest.mark.parametrize("elite", [0, 1])
async def test_a_select_that_keeps_nobody_is_named_unless_there_is_an_elite(elite: int) -> None:
    class Nobody(OneMax):
        @override
        async def select(self, population: Sequence[Bits], scores: Sequence[float]) -> list[Bits]:
            return []

    pipeline = EvolutionPipeline(EvolutionConfig(epochs=3, elite=elite), Nobody())
    if elite:
        assert (await pipeline.run(population(4))).epochs_completed == 3
    else:
        with pytest.raises(CallbackError, match="no survivors"):
            await pipeline.run(population(4))


@pytest.mark.parametrize(
    "answer",
    [10**400, [1.0, 2.0], {}, object(), Score("high"), Score(1.0, {"a": None}), 1j],  # type: ignore[arg-type, dict-item] # the fault itself
)
async def test_an_odd_score_is_a_failure_with_a_name(answer: Any) -> None:  # noqa: ANN401 - likewise
    odd = population(4)[0]

    class Odd(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            return answer if candidate == odd else 1.0

    result = await EvolutionPipeline(EvolutionConfig(epochs=1, population_size=4), Odd()).run(
        population(4)
    )
    assert result.members[0].error is not None
    assert "evaluate returned" in result.members[0].error


@pytest.mark.parametrize("candidate", [{}, {"a": 1}, 7, ["a"]])
async def test_what_is_no_prompt_is_named(candidate: Any) -> None:  # noqa: ANN401 - the fault itself
    strategy = PromptEvolution(_echo, ["a"], _is_right, _Model("one"))
    with pytest.raises(TrainingError, match="text"):
        await EvolutionPipeline(EvolutionConfig(), strategy).run([candidate])


async def test_choices_may_be_lists_and_other_things_without_a_hash() -> None:
    choice = Choice([["a"], ["a", "b"], ["c"]])
    strategy = NumericEvolution({"tools": choice}, lambda s: float(len(s["tools"])))
    result = await EvolutionPipeline(EvolutionConfig(epochs=4), strategy).run(strategy.sample(2))
    assert result.best == {"tools": ["a", "b"]}
    with pytest.raises(ConfigError, match="different options"):
        Choice([["a"], ["a"]])


async def test_a_tiny_selection_ratio_is_a_large_tournament() -> None:
    config = EvolutionConfig(epochs=2, population_size=4, selection_ratio=1e-320, mode="steady")
    assert (await EvolutionPipeline(config, OneMax()).run(population(4))).epochs_completed == 2


# --- tasks at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [1, 3])
async def test_tasks_run_at_once_within_the_concurrency_of_the_run(candidates: int) -> None:
    running = peak = 0

    async def agent(prompt: object, _task: int) -> object:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.002)
        running -= 1
        return prompt

    strategy = PromptEvolution(agent, range(60), lambda _t, _o: 0.5, _Model("one"))
    config = EvolutionConfig(epochs=1, population_size=candidates, concurrency=16)
    await EvolutionPipeline(config, strategy).run([f"seed {i}" for i in range(candidates)])
    assert peak == 16


async def test_a_prompt_run_is_the_same_at_any_concurrency() -> None:
    async def agent(prompt: object, task: int) -> bool:
        await asyncio.sleep(0.001 * (task % 3))
        return hash((str(prompt), task)) is not None and (len(str(prompt)) * task) % 7 < 4

    async def reflect(messages: Sequence[Mapping[str, object]]) -> str:
        text = (
            str(messages[1]["content"]).split("<instructions>\n")[1].split("\n</instructions>")[0]
        )
        return (
            f"<instructions>{text}{'x' * (len(str(messages[1]['content'])) % 5 + 1)}</instructions>"
        )

    async def run(concurrency: int) -> list[dict[str, Any]]:
        strategy = PromptEvolution(agent, range(20), lambda _t, output: float(output), reflect)  # type: ignore[arg-type] # a bool
        config = EvolutionConfig(epochs=5, population_size=6, concurrency=concurrency)
        return (await EvolutionPipeline(config, strategy).run(["s", "sss"])).to_dicts()

    first = await run(1)
    assert len(first) > 8
    assert await run(4) == await run(32) == first


# --- what the reflecting model sees ---------------------------------------------------------------


async def test_the_reflecting_model_never_sees_the_solution() -> None:
    from dataclasses import dataclass

    from orbiter.train import TrajectoryItem

    @dataclass
    class Task:
        question: str
        answer: str

    asked: list[str] = []

    async def reflect(messages: Sequence[Mapping[str, object]]) -> str:
        asked.append(str(messages[1]["content"]))
        return "<instructions>better</instructions>"

    items: list[Any] = [
        TrajectoryItem("capital of Styria?", "SOLUTION"),
        Task("capital of Styria?", "SOLUTION"),
        {"question": "capital of Styria?", "expected": "SOLUTION"},
    ]

    async def agent(_prompt: object, _task: object) -> str:
        return "no idea"

    strategy = PromptEvolution(agent, items, lambda _t, _o: 0.0, reflect)
    config = EvolutionConfig(epochs=2, population_size=2)
    await EvolutionPipeline(config, strategy).run(["seed"])
    assert asked
    assert all(text.count("capital of Styria?") == 3 for text in asked)
    assert not any("SOLUTION" in text for text in asked)


# --- the journal's end ----------------------------------------------------------------------------


async def test_the_journal_ends_with_what_the_result_says(tmp_path: Path) -> None:
    class Lottery(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            return self.context.rng.gauss(0, 1)

    config = EvolutionConfig(epochs=3, population_size=6, confirm=9, run_dir=tmp_path)
    result = await EvolutionPipeline(config, Lottery()).run(population(6))
    last = json.loads((tmp_path / "evolution.jsonl").read_text().splitlines()[-1])["end"]
    assert last["score"] == result.best_score
    assert last["reason"] == "epochs"


async def test_the_report_of_a_confirmed_run_agrees_with_its_result(tmp_path: Path) -> None:
    from orbiter.train.report.lineage import read_lineage

    class Lottery(OneMax):
        @override
        async def evaluate(self, candidate: Bits) -> float:
            return self.context.rng.gauss(0, 1)

    config = EvolutionConfig(epochs=4, population_size=8, confirm=20, run_dir=tmp_path)
    result = await EvolutionPipeline(config, Lottery()).run(population(8))
    page = read_lineage(tmp_path / "evolution.jsonl", "run")
    best = page["members"][page["best"]]
    assert best["score"] == pytest.approx(result.best_score, rel=1e-3)
    assert best["n"] == 20
    assert page["members_in_all"] == len(result.members)
    assert page["evaluations"] == result.evaluations
