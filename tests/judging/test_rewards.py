"""Judges as rewards of a training: answers and episodes, failures, the run folder, resuming."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from orbiter.train.errors import CallbackError, ConfigError, TrainingError
from orbiter.train.judging import BaseJudge, GroupJudge
from orbiter.train.llm import BudgetError, ClientConfig, Price, RemoteChatModel
from orbiter.train.runlog import read_run
from orbiter.train.synthesis.llm.judge import Judge
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.verl.judged import order_effect
from orbiter.train.verl.reward import score
from tests.agents.playing import branching, equal, spread, tiny, two_turns, weights
from tests.judging.scripted import PRICE, Replies, Scorer, attempts_in, scores
from tests.llm.server import ChatServer

PROMPTS = ["Say something.", "Name a colour.", "Sing."]
JUDGES: list[type[BaseJudge]] = [Judge, GroupJudge]


def run(
    judge: BaseJudge,
    *more: RewardSpec,
    agent: object = None,
    **settings: Any,  # noqa: ANN401
) -> VeRLTrainer:
    return VeRLTrainer(tiny(**settings), [RewardSpec("judge", 1.0, judge), *more], agent=agent)


@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.parametrize("agent", [None, branching], ids=["answers", "episodes"])
async def test_a_judge_trains_as_a_reward_and_its_calls_are_counted(
    kind: type[BaseJudge], agent: object, tmp_path: Path
) -> None:
    model = Scorer(spread)
    trained = run(kind(model, "variety"), agent=agent, output_dir=tmp_path)
    before = await weights(trained)
    await trained.train(PROMPTS)
    assert not equal(before, await weights(trained))
    kept = read_run(tmp_path)
    last = kept.times[-1]
    assert last["judge_calls"] == len(model.asked) > 0
    assert last["judge_cost"] == pytest.approx(PRICE * len(model.asked))
    assert "judge_cost" not in kept.metrics[-1], "costs of a resumed run differ; metrics must not"
    outputs = [o for sample in kept.samples for o in sample["outputs"]]  # type: ignore[attr-defined]
    assert all(0 <= output["rewards"]["judge"] <= 1 for output in outputs)
    if kind is GroupJudge:
        assert len(model.asked) <= len(PROMPTS), "one call a task"
    assert list((tmp_path / "judges").glob("judge-*.sqlite"))


@pytest.mark.parametrize("agent", [None, two_turns], ids=["answers", "episodes"])
async def test_a_resumed_run_takes_the_same_answers_without_asking_again(
    agent: object, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"epochs": 2, "save_every": 1, "agent": agent}
    whole = run(GroupJudge(Scorer(spread), "v"), **settings, output_dir=tmp_path / "whole")
    await whole.train(PROMPTS)

    class Stopping(Scorer):
        def reply(self, question: str, messages: Any) -> str:  # noqa: ANN401
            answer = super().reply(question, messages)
            if len(self.asked) == 4:  # in the second step of the first epoch or later
                task.cancel()
            return answer

    stopping = Stopping(spread)
    first = run(GroupJudge(stopping, "v"), **settings, output_dir=tmp_path / "run")
    task = asyncio.ensure_future(first.train(PROMPTS))
    with pytest.raises(asyncio.CancelledError):
        await task
    again = Scorer(spread)
    resumed = run(GroupJudge(again, "v"), **settings, resume=True, output_dir=tmp_path / "run")
    await resumed.train(PROMPTS)
    assert equal(await weights(whole), await weights(resumed))
    metrics = [read_run(tmp_path / name).metrics for name in ("whole", "run")]
    # Restored episodes are not played again, so their prompts are not in the share that was run.
    # How the sampler rounds depends on which calls arrive together.
    by_arrival = {"prompt_run_share": 0, "sampler_gap": 0}
    rows = [[{**row, **by_arrival} for row in each] for each in metrics]
    assert rows[0] == rows[1]
    asked = set(stopping.asked)
    assert len(asked & set(again.asked)) <= 1, "only what was cut off is asked again"


async def test_an_unreadable_group_is_left_out_of_the_gradient_and_counted(tmp_path: Path) -> None:
    class HalfReadable(Scorer):
        def reply(self, question: str, messages: Any) -> str:  # noqa: ANN401
            return "?" if "Sing." in question else super().reply(question, messages)

    judge = GroupJudge(HalfReadable(spread), "v")
    for on_error in ("raise", "skip", 0.0):
        folder = tmp_path / str(on_error)
        trained = run(judge, on_reward_error=on_error, batch_size=3, output_dir=folder)
        metrics = await trained.train(PROMPTS)
        assert metrics["left_out/unreadable"] == 3
        assert metrics["reward_faults"] == 0
        sung = next(s for s in read_run(folder).samples if s["prompt"] == "Sing.")
        outputs: Any = sung["outputs"]
        assert [o["reward"] for o in outputs] == [o["advantage"] for o in outputs] == [None] * 3
        judge = GroupJudge(HalfReadable(spread), "v")


async def test_a_run_without_a_readable_group_says_so() -> None:
    trained = run(GroupJudge(Replies("?"), "v"), max_flat_steps=2, epochs=3)
    with pytest.raises(TrainingError, match="nothing can be learned"):
        await trained.train(PROMPTS)


async def test_failures_follow_on_reward_error() -> None:
    async def down(messages: object) -> str:
        raise ConnectionError("no route")

    items = [TrajectoryItem("q", "a")] * 4
    answers = ["a", "b", "c", "d"]

    async def totals(judge: BaseJudge, on_error: Any) -> list[float | None]:  # noqa: ANN401
        spec = [RewardSpec("j", 2.0, judge)]
        found = await score(answers, items, spec, on_error=on_error, group_sizes=[2, 2])
        assert found.faults == (2 if judge.relative else 4)
        return found.total

    for kind in JUDGES:
        judge = kind(down, "r")
        assert await totals(judge, "skip") == [None] * 4
        assert await totals(judge, 0.5) == [1.0] * 4
        with pytest.raises(CallbackError, match=r"judge 'j' on item 0 \(task 'q'\).*no route"):
            await totals(judge, "raise")


async def test_a_spent_budget_ends_a_run_or_leaves_samples_out() -> None:
    with pytest.raises(BudgetError, match="may be called max_calls=2 times"):
        await run(Judge(Scorer(spread), "v", max_calls=2)).train(PROMPTS)
    trained = run(Judge(Scorer(spread), "v", max_calls=7), on_reward_error="skip", batch_size=3)
    metrics = await trained.train(PROMPTS)
    assert metrics["reward_faults"] == 2


async def test_a_slow_judge_runs_into_the_time_limit_of_rewards() -> None:
    async def slow(messages: object) -> str:
        await asyncio.sleep(60)
        return "{}"

    judge: Any = GroupJudge(slow, "r")
    items = [TrajectoryItem("q", "a")] * 2
    with pytest.raises(CallbackError, match=r"judge 'j' .* gave no answer within 0.05 s"):
        await score(
            ["a", "b"], items, [RewardSpec("j", 1, judge)], timeout_seconds=0.05, group_sizes=[2]
        )


async def test_judges_of_several_groups_are_asked_at_the_same_time() -> None:
    at_once = most = 0

    async def model(messages: Any) -> str:  # noqa: ANN401
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return scores(*([0.5] * len(attempts_in(str(messages[0]["content"])))))

    judge = GroupJudge(model, "r")
    items = [TrajectoryItem(f"q{i}", "a") for i in range(8) for _ in range(2)]
    answers = [f"{i}" for i in range(16)]
    spec = [RewardSpec("j", 1, judge)]
    await score(answers, items, spec, group_sizes=[2] * 8, concurrency=4)
    assert most == 4


async def test_a_judge_and_a_function_are_added_with_their_weights() -> None:
    items = [TrajectoryItem("q", "a")] * 2
    rewards = [
        RewardSpec("j", 0.5, GroupJudge(Scorer(lambda text: {"a": 0.2, "b": 1.0}[text]), "r")),
        RewardSpec("n", 2.0, lambda output: float(output == "a")),
        RewardSpec("k", 1.0, Judge(Scorer(lambda text: 0.25), "r")),  # noqa: ARG005
    ]
    found = await score(["a", "b"], items, rewards, group_sizes=[2])
    assert found.total == pytest.approx([0.1 + 2 + 0.25, 0.5 + 0.25])
    assert found.by_name == {"j": [0.2, 1.0], "n": [1.0, 0.0], "k": [0.25, 0.25]}


async def test_the_effect_of_the_order_is_measured() -> None:
    """A judge that likes what it sees first is noticed; one that ignores the order is not."""

    class First(Scorer):
        def reply(self, question: str, messages: Any) -> str:  # noqa: ANN401
            n = len(attempts_in(question))
            return scores(*(1 - place / (n - 1) for place in range(n)))

    items = [TrajectoryItem(f"q{i // 4}", "a") for i in range(160)]
    answers = [f"{spread(str(i)):.3f} {i}" for i in range(160)]
    found: dict[str, float] = {}
    for name, model in {"biased": First(spread), "fair": Scorer(spread)}.items():
        spec = [RewardSpec(name, 1, GroupJudge(model, "r"))]
        given = await score(answers, items, spec, group_sizes=[4] * 40)
        found |= given.order_effect
    assert found["biased"] == pytest.approx(-1)
    assert abs(found["fair"]) < 0.3
    assert order_effect([]) is None


async def test_evaluation_asks_a_group_judge_only_about_several_answers() -> None:
    trained = run(GroupJudge(Scorer(spread), "v"))
    with pytest.raises(ConfigError, match=r"give evaluate\(samples=2\) or more"):
        await trained.evaluate(PROMPTS)
    trained = run(GroupJudge(Scorer(spread), "v"))
    assert 0 <= (await trained.evaluate(PROMPTS, samples=2))["reward/judge"] <= 1
    both = run(GroupJudge(Scorer(spread), "v"), RewardSpec("probe", 1, spread))
    assert "reward/judge" not in (await both.evaluate(PROMPTS)).extra
    with_agent = run(GroupJudge(Scorer(spread), "v"), agent=two_turns)
    assert 0 <= (await with_agent.evaluate(PROMPTS, samples=3))["reward/judge"] <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1, "algorithm": "ppo"}, "group_size=1 leaves nothing to compare"),
        ({"eval_every": 1}, "can only compare several answers"),
        ({"backend": "verl"}, "reward 'judge' is a judge, and backend='verl' calls rewards"),
    ],
)
async def test_a_judge_that_cannot_work_is_refused_before_the_run(
    settings: dict[str, Any], message: str
) -> None:
    config = VeRLConfig(**{"model": "tiny", "group_size": 2, **settings})
    judge = GroupJudge(Scorer(spread), "v")
    trained = VeRLTrainer(config, [RewardSpec("judge", 1, judge)], eval_dataset=PROMPTS)
    with pytest.raises(ConfigError, match=message):
        await trained.train(PROMPTS)


async def test_the_plan_counts_the_calls() -> None:
    plan = await run(GroupJudge(Scorer(spread), "v", votes=2, max_cost=3), epochs=2).plan(
        PROMPTS[:2]
    )
    assert (plan.judge_calls, plan.judge_max_cost) == (2 * 2 * 2, 3)
    plan = await run(Judge(Scorer(spread), "v")).plan(PROMPTS[:2])
    assert (plan.judge_calls, plan.judge_max_cost) == (2 * 3, None)


def verdict_of(text: str) -> str:
    count = len(attempts_in(text))
    return scores(*(place / count for place in range(count))) if count else "yes"


@pytest.mark.parametrize("models", [None, ["gpt-any"]], ids=["all", "named"])
async def test_the_calls_of_a_judge_go_outside_while_the_policy_answers_the_agent(
    models: list[str] | None,
) -> None:
    """The policy answers every model call of the agent; the judge still reaches its endpoint."""
    with ChatServer(reply=verdict_of) as server:

        async def agent(task: str) -> str:
            answer = await two_turns(task)
            if models is None:
                return answer
            async with httpx.AsyncClient() as client:  # a judge inside the agent
                body = {"model": "helper", "messages": [{"role": "user", "content": answer}]}
                given = await client.post(f"{server.url}/chat/completions", json=body)
            return answer + str(given.json()["choices"][0]["message"]["content"])

        config = ClientConfig(
            model="judge-model",
            base_url=server.url,
            price=Price(input=1.0, output=1.0),
            parameters={"max_tokens": 64},
        )
        async with RemoteChatModel(config, api_key="k") as model:
            judge = GroupJudge(model, "better", max_cost=1.0)
            trained = run(judge, agent=agent, policy_models=models)
            await trained.train(PROMPTS[:2])
    asked = [str(seen.body["model"]) for seen in server.seen]
    assert asked.count("judge-model") == 2 == judge.spent.calls
    assert asked.count("helper") == (0 if models is None else 6)
    assert judge.spent.cost > 0
    assert json.dumps(trained.history[-1]["judge_calls"]) == "2.0"
