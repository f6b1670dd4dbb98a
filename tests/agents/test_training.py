"""A step learns from whole episodes: the gradient is exact, failures are absent from it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train.agents import Episode, current_episode
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import Part, score
from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.rl import group_relative_advantage
from orbiter.train.rl.rloo import leave_one_out_advantage
from orbiter.train.serve.live import LivePolicy
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.verl.episodes import credit_episodes, objective_of
from orbiter.train.verl.play import PlaySetting, play
from orbiter.train.verl.tasks import as_tasks
from tests.agents.playing import (
    ask,
    branching,
    equal,
    spread,
    tiny,
    trainer,
    two_turns,
    weights,
)

PROBE = [RewardSpec("probe", 1.0, spread)]
NONSENSE: list[object] = ["a task", {"a": 1}, 7, []]
"""What is no list of tasks."""


async def sometimes_fails(task: str) -> str:
    """Branch, but raise in the second attempt, after calls that have to leave no trace."""
    output = await branching(task)
    if current_episode().attempt == 1:
        raise RuntimeError("a tool is down")
    return output


def gradient(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    named = policy.named_trainable()
    grads = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, grads, strict=True))


def by_hand(policy: Policy, config: VeRLConfig, episodes: list[Episode]) -> dict[str, Tensor]:
    """Autograd through Hugging Face's plain forward, one stream at a time."""
    valid = torch.tensor([not e.failed for e in episodes]).view(-1, config.group_size)
    reward = torch.tensor([spread(e.output) for e in episodes], dtype=torch.float64)
    grouped = reward.view(-1, config.group_size) * valid
    if config.algorithm == "rloo":
        advantage = leave_one_out_advantage(grouped, valid=valid).flatten().tolist()
    else:
        advantage = group_relative_advantage(grouped, valid=valid).flatten().tolist()
    kept = [i for i, e in enumerate(episodes) if not e.failed]
    total = sum(episodes[i].sampled_tokens for i in kept)
    loss = torch.zeros(())
    for i in kept:
        share = {
            "token": 1 / total,
            "episode": 1 / (len(kept) * episodes[i].sampled_tokens),
            "constant": 1 / (len(kept) * 500),
        }[config.loss_aggregation]
        for stream in episodes[i].streams:
            ids = torch.tensor([stream.token_ids])
            logits = policy.model(ids, use_cache=False).logits[0].float()
            each = logits[:-1].log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0]
            loss = loss - advantage[i] * share * each[torch.tensor(stream.mask[1:])].sum()
    return gradient(policy, loss)


@pytest.mark.parametrize("agent", [branching, sometimes_fails])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithm": "rloo"},
        {"algorithm": "cispo"},
        {"loss_aggregation": "episode"},
        {"loss_aggregation": "constant", "max_episode_tokens": 500},
    ],
)
async def test_the_gradient_is_that_of_plain_autograd_over_the_streams(
    policy: Policy, agent: object, settings: dict[str, Any]
) -> None:
    config = tiny(**settings)
    setting = PlaySetting(policy, config, agent, PROBE)
    tasks = as_tasks(["hello", "abc"])
    async with LivePolicy(policy, max_new_tokens=config.max_response_length) as live:
        episodes, scores = await play(setting, live, tasks, [[1, 2, 3], [4, 5, 6]])
    fails = agent is sometimes_fails
    assert [e.failed for e in episodes] == [False, fails, False] * 2

    def compare() -> None:
        credited = credit_episodes(policy, config, episodes, scores).credited
        assert credited.batch is not None
        kept = [e for e in episodes if not e.failed]
        assert len(credited.batch.length) == sum(len(e.streams) for e in kept)
        assert int(credited.batch.mask.sum()) == sum(
            len(turn.token_ids) for e in kept for turn in e.turns
        )
        loss, _ = objective_of(config)(score(policy, credited.batch), credited.batch, Part(1, 1))
        got, want = gradient(policy, loss), by_hand(policy, config, episodes)
        assert max(float(g.abs().max()) for g in want.values()) > 1e-4
        for name, g in want.items():
            torch.testing.assert_close(got[name], g, rtol=1e-3, atol=2e-6)

    await work(compare)


async def test_rewards_get_what_they_name_and_step_rewards_count() -> None:
    seen: list[tuple[object, ...]] = []

    async def agent(task: dict[str, str]) -> dict[str, str]:
        current_episode().step_reward(0.25)
        return {"said": await two_turns(task["ask"])}

    def everything(
        output: str,
        item: TrajectoryItem,
        task: dict[str, str],
        result: dict[str, str],
        episode: Episode,
    ) -> float:
        seen.append((json.loads(output) == result, item.task_id, task["ask"], len(episode.turns)))
        return 1.0

    def only_episode(episode: Episode) -> float:
        return float(len(episode.turns))

    run = VeRLTrainer(
        tiny(max_flat_steps=2),
        [
            RewardSpec("a", 1.0, everything),
            RewardSpec("b", 0.5, only_episode),
            RewardSpec("c", 1.0, lambda output: 0.0 if output else 1.0),
            RewardSpec("d", 1.0, lambda *, result: float("said" in result)),
        ],
        agent=agent,
    )
    metrics = await run.evaluate([{"ask": "x", "task_id": "t1"}], samples=2)
    assert metrics.reward == pytest.approx(1 + 0.5 * 2 + 0 + 1 + 0.25)
    assert metrics.extra["reward/step_rewards"] == 0.25
    assert seen == [(True, "t1", "x", 2)] * 2


async def test_training_learns_from_episodes_and_writes_them_down(tmp_path: Path) -> None:
    run = trainer(branching, epochs=2, output_dir=tmp_path / "run")
    before = await weights(run)
    metrics = await run.train(["a", "b", "c"])
    assert not equal(before, await weights(run))
    assert len(run.history) == 4
    row = run.history[0]
    assert row["turns"] == 4
    assert row["streams"] == 3
    assert row["failed"] == 0
    assert 0 < row["prompt_run_share"] < 1
    assert row["tokens"] == pytest.approx(row["length"] * 6)
    assert metrics.reward is not None
    samples = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(samples[0])
    assert len(samples) == 6
    assert len(first["outputs"]) == 3
    turns = first["outputs"][0]["turns"]
    assert [len(turn["asked"]) for turn in turns] == [1, 1, 3, 1]
    assert turns[0]["answer"]["role"] == "assistant"
    assert sum(turn["tokens"] for turn in turns) == first["outputs"][0]["tokens"]


async def test_failed_episodes_are_counted_and_too_many_are_an_error() -> None:
    run = trainer(sometimes_fails, epochs=1)
    await run.train(["a", "b"])
    assert run.history[0]["failed/agent_error"] == 2
    assert run.history[0]["failed"] == pytest.approx(1 / 3)
    strict = trainer(sometimes_fails, max_failed_share=0.3)
    with pytest.raises(
        CallbackError,
        match=r"2 of 6 episodes failed, more than max_failed_share=0.3 .*'[ab]': agent_error, "
        "RuntimeError: a tool is down",
    ):
        await strict.train(["a", "b"])


async def test_an_agent_that_raises_after_an_answer_can_be_scored_instead() -> None:
    asked: list[object] = []

    def rated(result: object) -> float:
        asked.append(result)
        return 1.0

    async def raises(task: str) -> str:
        if task == "down":
            raise RuntimeError("no answer was asked for")
        text = await branching(task)
        if current_episode().attempt == 0:
            raise ValueError("nonsense")
        return text

    run = trainer(raises, rated, epochs=1, on_agent_error=-0.5)
    before = await weights(run)
    await run.train(["a", "b"])
    row = run.history[0]
    assert row["stopped/scored_error"] == 2
    assert row["failed"] == 0
    assert "failed/agent_error" not in row
    # Each group of three holds one episode whose agent raised.
    assert row["reward"] == pytest.approx((2 * 1 - 0.5) / 3)
    assert row["reward/probe"] == 1.0
    assert len(asked) == 4
    assert not equal(before, await weights(run))
    metrics = await run.evaluate(["a"], samples=3)
    assert metrics.reward == pytest.approx((2 * 1 - 0.5) / 3)
    # Without an answer there is nothing to train on.
    with pytest.raises(CallbackError, match="agent_error, RuntimeError: no answer"):
        await run.train(["down", "down"])


async def test_an_agent_that_calls_no_model_of_the_policy_is_an_error() -> None:
    async def silent(task: str) -> str:
        return "42"

    with pytest.raises(CallbackError, match="no_calls, it made no model call that the policy"):
        await trainer(silent).train(["a"])


async def test_evaluation_has_an_interval_and_pass_at_k_and_repeats_itself() -> None:
    run = trainer(two_turns, fn=lambda output: float(len(output) % 2))
    drawn = [await run.evaluate(["a", "b", "c", "d"], samples=3) for _ in range(2)]
    assert drawn[0].measured() == drawn[1].measured()
    assert drawn[0].reward_interval is not None
    assert 0 <= drawn[0].extra["pass@1"] <= drawn[0].extra["pass@3"] <= 1
    greedy = await run.evaluate(["a", "a"])
    assert greedy.reward in (0.0, 1.0)


@pytest.mark.parametrize("updates", [{}, {"ppo_epochs": 2, "minibatch_size": 3}])
@pytest.mark.parametrize("how", ["stopped", "cancelled"])
async def test_an_interrupted_run_resumes_to_the_same_weights(
    tmp_path: Path, how: str, updates: dict[str, Any]
) -> None:
    tasks = [{"ask": "a"}, {"ask": "b"}, {"ask": "c"}]
    settings: dict[str, Any] = {"epochs": 2, "save_every": 1, "policy_models": ["gpt-any"]}
    settings |= updates
    played = 0

    async def agent(task: dict[str, str]) -> str:
        nonlocal played
        played += 1
        if played == interrupt_at and how == "cancelled":
            training.cancel()
        elif played == interrupt_at:
            run.stop()
        return await two_turns(task["ask"])

    interrupt_at = -1
    whole = trainer(agent, **settings, output_dir=tmp_path / "whole")
    await whole.train(tasks)

    played, interrupt_at = 0, 11  # in the third of four steps: 6, 3, 6 and 3 episodes
    run = trainer(agent, **settings, output_dir=tmp_path / "run")
    training = asyncio.ensure_future(run.train(tasks))
    if how == "cancelled":
        with pytest.raises(asyncio.CancelledError):
            await training
    else:
        await training
        assert run.stopped
    steps = {"cancelled": 2, "stopped": 3}[how]
    assert len(run.history) == steps
    interrupt_at = -1
    resumed = trainer(agent, **settings, resume=True, output_dir=tmp_path / "run")
    await resumed.train(tasks)
    assert len(resumed.history) == 4 - steps
    assert equal(await weights(whole), await weights(resumed))


async def test_validation_keeps_the_best_model(tmp_path: Path) -> None:
    run = VeRLTrainer(
        tiny(epochs=2, eval_every=1, output_dir=tmp_path / "run"),
        PROBE,
        agent=two_turns,
        eval_dataset=["held out"],
    )
    await run.train(["a", "b"])
    assert all("eval/reward" in row for row in run.history)
    assert (tmp_path / "run" / "best").is_dir()


class WithInstructions:
    instructions = "Be brief."

    async def run(self, task: str) -> str:
        return (await ask([{"role": "user", "content": task}]))["content"] or ""


async def test_an_agent_that_runs_is_run_even_if_it_has_instructions() -> None:
    run = trainer(WithInstructions(), epochs=1)
    await run.train(["a", "b"])
    assert run.history[0]["turns"] == 1


@pytest.mark.parametrize(
    ("settings", "agent", "words"),
    [
        ({"credit": "turn"}, None, "credit='turn' needs agent="),
        ({"loss_aggregation": "sequence"}, two_turns, "use 'episode', 'token' or 'constant'"),
        ({"loss_aggregation": "episode"}, None, "'episode' needs agent="),
        ({"system_prompt": "x"}, two_turns, "system_prompt has no effect"),
        ({}, WithInstructions, "is the class WithInstructions"),
        ({"eval_every": 1}, two_turns, "needs eval_dataset="),
        ({"backend": "verl", "ratio": "sequence"}, two_turns, "ratio='sequence'"),
    ],
)
async def test_what_does_not_go_with_an_agent_is_refused(
    settings: dict[str, Any], agent: object, words: str
) -> None:
    if settings.get("backend"):
        settings = settings | {"device": "cpu"}
    with pytest.raises(ConfigError, match=words):
        await trainer(agent, **settings).validate()
    with pytest.raises(ConfigError, match=words):
        await trainer(agent, **settings).train(["a"])


async def test_the_tasks_and_rewards_of_an_agent_are_checked() -> None:
    for nonsense in NONSENSE:
        with pytest.raises(ConfigError, match="tasks"):
            await trainer(two_turns).train(nonsense)
    with pytest.raises(DataError, match="nothing to evaluate on"):
        await trainer(two_turns).evaluate()
    asks = RewardSpec("r", 1.0, lambda task, result: float(task == result))
    alone = VeRLTrainer(tiny(), [asks])
    with pytest.raises(ConfigError, match="reward 'r' asks for task or result or episode"):
        await alone.train(["a"])


async def test_a_plan_plays_two_episodes_and_estimates_the_whole_run() -> None:
    asked: list[str] = []

    async def counted(task: str) -> str:
        asked.append(task)
        return await two_turns(task)

    run = trainer(counted, epochs=4, episode_concurrency=1)
    before = await weights(run)
    plan = await run.plan(["a", "bb", "c", "dddd", "e"])
    assert asked == ["a", "bb"]
    assert (plan.items, plan.steps, plan.updates) == (5, 12, 12)
    assert equal(before, await weights(run))
    # Two turns of at most 5 sampled tokens, for each of 2 x 3 episodes of a step.
    streams = plan.tokens / (plan.steps * 6)
    assert 10 < streams <= plan.longest_item
    assert plan.seconds > 0
    assert plan.memory_bytes > 10_000_000
    assert "float32" in plan.computes

    longer = await trainer(counted, max_response_length=40).plan(["a", "bb"])
    assert longer.longest_item > plan.longest_item


async def test_a_plan_says_why_its_episodes_failed() -> None:
    async def broken(task: str) -> str:
        raise RuntimeError(f"no {task} today")

    with pytest.raises(CallbackError, match="all failed: agent_error, RuntimeError: no a today"):
        await trainer(broken).plan(["a", "b"])


async def test_episode_concurrency_bounds_the_episodes_that_are_played_together() -> None:
    playing, most = 0, 0
    expected, all_here = 2, asyncio.Event()

    async def watched(task: str) -> str:
        nonlocal playing, most
        playing += 1
        most = max(most, playing)
        if playing == expected:
            all_here.set()
        try:
            # The first ones wait for the others, however fast an episode is.
            async with asyncio.timeout(60):
                await all_here.wait()
            return await two_turns(task)
        finally:
            playing -= 1

    one = trainer(watched, episode_concurrency=2)
    first = await one.train(["a", "b"])
    assert most == 2
    most, expected = 0, 6
    all_here.clear()
    all_ = trainer(watched)
    second = await all_.train(["a", "b"])
    assert most == 6
    assert first.reward == second.reward  # what is drawn does not depend on it
    with pytest.raises(ConfigError, match=r"episode_concurrency must be .*at least 1"):
        tiny(episode_concurrency=0)


@pytest.mark.parametrize("models", ["gpt-5", [], [""], [7]])
def test_policy_models_is_a_list_of_names(models: object) -> None:
    with pytest.raises(ConfigError, match="policy_models must be a list of model names"):
        tiny(policy_models=models)
