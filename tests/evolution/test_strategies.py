"""The ready strategies: each finds what it is made to find, and keeps its promises."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.evolution import (
    BestOfN,
    CallableEvolution,
    Choice,
    Context,
    EvolutionConfig,
    EvolutionPipeline,
    EvolutionResult,
    Float,
    Int,
    NumericEvolution,
    PopulationTraining,
    PromptEvolution,
    RandomSearch,
    StopReason,
    Trainee,
)
from orbiter.train.evolution.front import newest_of_front
from orbiter.train.evolution.strategies.reflection import Limits, instructions_in
from orbiter.train.evolution.strategies.space import Knob, draw
from orbiter.train.llm.chat import ChatModel
from tests.evolution.problems import OneMax, population

Mode = Literal["generation", "steady"]

SPACE: dict[str, Knob] = {
    "rate": Float(1e-5, 1.0, log=True),
    "share": Float(0.0, 1.0),
    "layers": Int(1, 12),
    "kind": Choice(["a", "b", "c"]),
}


def good(settings: Mapping[str, Any]) -> float:
    miss: float = abs(math.log10(settings["rate"]) + 3) + abs(settings["share"] - 0.3)
    return -miss - abs(float(settings["layers"]) - 4) - float(settings["kind"] != "b")


async def test_two_functions_are_a_strategy() -> None:
    def score(text: str) -> float:
        return -abs(len(text) - 40)

    async def vary(text: str, context: Context) -> str:
        return text + context.rng.choice(" abc")

    config = EvolutionConfig(epochs=60, population_size=10)
    result = await EvolutionPipeline(config, CallableEvolution(score, vary)).run(["start"])
    assert result.best_score == 0


@pytest.mark.parametrize("mode", ["generation", "steady"])
async def test_settings_of_every_kind_are_found_together(mode: Mode) -> None:
    strategy = NumericEvolution(SPACE, good)
    config = EvolutionConfig(epochs=60, mode=mode, concurrency=1)
    result = await EvolutionPipeline(config, strategy).run(strategy.sample(20))
    assert result.best is not None
    assert (result.best["layers"], result.best["kind"]) == (4, "b")
    assert result.best_score > -0.1


def test_draws_and_shares_stay_within_bounds_and_come_back() -> None:
    random_ = random.Random(0)
    for knob in (SPACE["rate"], SPACE["share"], SPACE["layers"]):
        assert isinstance(knob, Float | Int)
        for _ in range(200):
            value = draw(knob, random_)
            assert not isinstance(value, str)
            assert knob.low <= value <= knob.high
            assert knob.at(knob.share(value)) == pytest.approx(value)
        assert (knob.at(-1.0), knob.at(2.0)) == (knob.low, knob.high)


def test_a_space_that_means_nothing_is_refused() -> None:
    for wrong in (lambda: Float(1, 1), lambda: Float(0, 1, log=True), lambda: Choice(["a"])):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ConfigError, match="empty"):
        NumericEvolution({}, good)


async def test_a_candidate_outside_of_the_space_is_a_failure_that_says_so() -> None:
    strategy = NumericEvolution({"x": Float(0, 1)}, lambda s: float(s["x"]))
    result = await EvolutionPipeline(EvolutionConfig(epochs=1, population_size=2), strategy).run(
        [{"x": 0.5}, {"x": 7.0}]
    )
    assert "x=7.0 lies outside" in (result.members[1].error or "")


async def test_evolution_beats_its_baselines_at_equal_evaluations() -> None:
    strategy = NumericEvolution(SPACE, good)
    config = EvolutionConfig(epochs=30)
    for rival in (BestOfN, RandomSearch):
        result = await EvolutionPipeline(config, strategy, baseline=rival).run(strategy.sample(20))
        assert result.baseline.evaluations == result.evaluations
        assert result.baseline.name == rival.__name__
        assert result.best_score > result.baseline.score


async def test_best_of_n_varies_nothing_but_the_initial_candidates() -> None:
    start = population(2)
    config = EvolutionConfig(epochs=4, population_size=8)
    result = await EvolutionPipeline(config, BestOfN(OneMax(), start)).run(start)
    children = [m for m in result.members if m.parents]
    assert children
    assert {p for m in children for p in m.parents} <= {0, 1}


async def test_random_search_needs_a_draw() -> None:
    with pytest.raises(ConfigError, match="give RandomSearch its `draw`"):
        RandomSearch(OneMax(), [])


async def test_every_result_has_a_baseline_of_its_first_epoch() -> None:
    result = await EvolutionPipeline(EvolutionConfig(epochs=8), OneMax()).run(population(20))
    assert result.baseline.score == result.history[0].best < result.best_score
    assert result.baseline.evaluations == 20


# --- prompts --------------------------------------------------------------------------------------

WORDS = [f"word{i}" for i in range(12)]


class Reflector:
    """Adds the word that a failing trace says is missing."""

    def __init__(self) -> None:
        self.asked: list[Sequence[Mapping[str, object]]] = []

    async def __call__(self, messages: Sequence[Mapping[str, object]]) -> str:
        self.asked.append(messages)
        question = str(messages[1]["content"])
        text = question.split("<instructions>\n", 1)[1].split("\n</instructions>", 1)[0]
        missing = question.split("missing: ", 1)[1].split("\n", 1)[0]
        return f"Of course!\n<instructions>\n{text} {missing}\n</instructions>"


class Agent:
    """Passes an instance where the prompt has its word; counts its rollouts."""

    def __init__(self) -> None:
        self.rollouts: list[tuple[str, str]] = []

    def __call__(self, texts: str | dict[str, str], instance: str) -> str:
        whole = texts if isinstance(texts, str) else " ".join(texts.values())
        self.rollouts.append((whole, instance))
        return "ok" if instance in whole.split() else f"missing: {instance}"


def exact(_instance: str, output: object) -> float:
    return float(output == "ok")


async def evolve(
    start: str | dict[str, str],
    agent: Agent,
    model: ChatModel,
    **settings: Any,  # noqa: ANN401 - of the strategy and of the configuration
) -> EvolutionResult[Any]:
    limits = {k: settings.pop(k) for k in ("max_chars", "copied_words") if k in settings}
    strategy = PromptEvolution(agent, WORDS, exact, model, **limits)
    config = EvolutionConfig(
        **{"epochs": 40, "mode": "steady", "concurrency": 1, "target": 1.0, **settings}
    )
    return await EvolutionPipeline(config, strategy).run([start])


@pytest.mark.parametrize("mode", ["generation", "steady"])
async def test_reflection_repairs_failure_after_failure(mode: str) -> None:
    result = await evolve("Start.", Agent(), Reflector(), mode=mode)
    assert (result.best_score, result.stop_reason) == (1.0, StopReason.TARGET)
    assert set(WORDS) <= set(str(result.best).split())


async def test_texts_of_several_names_change_one_at_a_time() -> None:
    result = await evolve({"system": "Start.", "tool": "Use it."}, Agent(), Reflector())
    assert result.best_score == 1.0
    for ancestor in result.lineage(result.best)[1:]:
        assert ancestor.diff.count("\n+") == 1 + 1 or ancestor.origin == "crossover"


async def test_a_parents_rollouts_are_never_repeated() -> None:
    agent = Agent()
    result = await evolve("Start.", agent, Reflector())
    assert len(agent.rollouts) == len(set(agent.rollouts)) == result.cost


async def test_a_child_that_breaks_things_is_given_up_early() -> None:
    class Breaker:
        async def __call__(self, messages: Sequence[Mapping[str, object]]) -> str:
            return "<instructions>nothing left</instructions>"

    agent = Agent()
    result = await evolve(" ".join(WORDS[:6]), agent, Breaker(), max_evaluations=2)
    assert result.best_score == 0.5
    tried = [name for text, name in agent.rollouts if text == "nothing left"]
    assert len(tried) == 4, "three that failed before, then one that is lost"


async def test_the_model_sees_what_failed_and_nothing_else() -> None:
    model = Reflector()
    await evolve(" ".join(WORDS[:6]), Agent(), model, max_evaluations=2)
    question = str(model.asked[0][1]["content"])
    assert question.count("feedback: score 0 of 1") == 3
    assert all(f"input: {word}\n" not in question for word in WORDS[:6])


async def test_long_and_copied_texts_are_sent_back_then_refused() -> None:
    copied = " ".join(WORDS)
    limits = Limits(max_chars=100, copied_words=8)
    assert limits.objection("short and own", "", [copied]) is None
    assert "too long" in (limits.objection("x" * 101, "", []) or "")
    assert "copied from a task" in (limits.objection(f"so {copied}", "", [copied]) or "")
    assert limits.objection(f"so {copied}", copied, [copied]) is None, "it was there before"

    result = await evolve("Start.", Agent(), Reflector(), max_chars=30)
    assert result.stop_reason is StopReason.FAILURES
    assert "too long; the limit is 30" in result.stop_cause
    assert len(str(result.best)) <= 30
    with pytest.raises(CallbackError, match="too long; the limit is 3"):
        await evolve("Start.", Agent(), Reflector(), max_chars=3)


@pytest.mark.parametrize(
    "answer",
    [
        "Hm.\n<instructions>\nDo it.\n</instructions>",
        "<think><instructions>No.</instructions></think><instructions>Do it.</instructions>",
        "<instructions>A draft.</instructions>\n<instructions>Do it.</instructions>",
        "Between <instructions> and </instructions>:\n<instructions>\nDo it.\n</instructions>",
        "<instructions>Do it.</instructions>\nIt is between <instructions> and </instructions>.",
    ],
)
def test_instructions_are_what_the_last_complete_marks_enclose(answer: str) -> None:
    assert instructions_in(answer) == "Do it."


@pytest.mark.parametrize(
    "answer",
    [
        "Do it.",
        "Hm.\n```text\nDo it.\n```",
        "<instructions>\nYou are an agent. Always ans",
        "<instructions>\nA draft.\n</instructions>\nBetter:\n<instructions>\nYou are an ag",
        "<think><instructions>Do it.</instructions>",
        "<think>units!</think>\nGive units.",
        "",
    ],
)
def test_an_unmarked_or_cut_off_answer_holds_no_instructions(answer: str) -> None:
    assert instructions_in(answer) is None


def test_the_front_drops_the_dominated_and_keeps_the_newest_of_equals() -> None:
    vectors = [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.5), (0.0, 1.0)]
    assert newest_of_front(vectors) == [2, 4]


async def test_an_agent_without_instances_is_refused() -> None:
    with pytest.raises(ConfigError, match="no instances"):
        PromptEvolution(Agent(), [], exact, Reflector())


# --- population-based training --------------------------------------------------------------------


def train(settings: Mapping[str, Any], start: Path | None, folder: Path) -> float:
    """Walk by steps that a good rate makes long; the further one is, the lower a good rate lies."""
    place = float((start / "place").read_text()) if start else 0.0
    place += max(0.0, 1 - abs(math.log10(settings["rate"]) + 2 + place / 5))
    (folder / "place").write_text(str(place))
    return place


def fixed_training(settings: Mapping[str, Any], folder: Path) -> float:
    folder.mkdir(exist_ok=True)
    train(settings, None, folder)
    return [train(settings, folder, folder) for _ in range(9)][-1]


RATE = {"rate": Float(1e-6, 1.0, log=True)}


async def test_population_training_goes_on_from_checkpoints_and_beats_fixed_settings(
    tmp_path: Path,
) -> None:
    for seed in range(3):
        strategy = PopulationTraining(train, RATE, tmp_path / str(seed))
        members = strategy.members(8, seed=seed)
        config = EvolutionConfig(epochs=10, population_size=8, seed=seed)
        result = await EvolutionPipeline(config, strategy).run(members)
        fixed = max(fixed_training(m.settings, tmp_path / f"fixed {seed}") for m in members)
        assert result.evaluations == 80, "as many stretches as eight fixed trainings"
        assert result.best_score > fixed
        assert all(1e-6 <= float(m.candidate.settings["rate"]) <= 1.0 for m in result.members)
        assert sorted(t.seat for t in result.population[:8]) == sorted(
            {t.seat for t in result.population[:8]}
        )


async def test_nobody_is_copied_who_left_no_checkpoint(tmp_path: Path) -> None:
    def forgetful(settings: Mapping[str, Any], start: Path | None, folder: Path) -> float:
        return 1e9 if settings["rate"] > 1e-3 else train(settings, start, folder)

    strategy = PopulationTraining(forgetful, RATE, tmp_path)
    config = EvolutionConfig(epochs=3, population_size=2)
    start = [Trainee({"rate": 1e-2}, 0), Trainee({"rate": 1e-3}, 1)]
    result = await EvolutionPipeline(config, strategy).run(start)
    assert "left no checkpoint" in (result.members[0].error or "")
    assert all(m.candidate.start is None or "seat-0" not in m.candidate.start
               for m in result.members[:4])  # fmt: skip
    with pytest.raises(ConfigError, match="truncation"):
        PopulationTraining(train, RATE, tmp_path, truncation=0.9)


# --- noise ----------------------------------------------------------------------------------------


async def test_a_confirmed_score_has_no_luck_left_in_it() -> None:
    def luck(_number: int) -> float:
        raise AssertionError

    class Lottery(CallableEvolution[int]):
        async def evaluate(self, candidate: int) -> float:
            return self.context.rng.gauss(0.0, 1.0)

    strategy = Lottery(luck, lambda _number, context: context.rng.randrange(10**9))
    scores = []
    for seed in range(6):
        config = EvolutionConfig(confirm=50, max_evaluations=150, seed=seed)
        result = await EvolutionPipeline(config, strategy).run(range(20))
        assert result.evaluations <= 150
        assert result.best_interval is not None
        assert result.best_interval.n == 50
        scores.append(result.best_score)
    assert abs(sum(scores) / 6) < 0.25


async def test_a_confirmation_needs_room_in_the_budget() -> None:
    with pytest.raises(ConfigError, match="leaves nothing"):
        EvolutionConfig(confirm=10, max_evaluations=10)
    with pytest.raises(DataError, match="empty"):
        await EvolutionPipeline(EvolutionConfig(confirm=2), OneMax()).run([])
