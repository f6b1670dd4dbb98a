"""`collect`: any agent over many tasks; failures are data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from orbiter.train import (
    CallbackError,
    ConfigError,
    DataError,
    RewardSpec,
    SFTConfig,
    SFTTrainer,
    TrajectoryDataset,
    TrajectoryItem,
    VeRLConfig,
    VeRLTrainer,
)
from orbiter.train.capture import collect, traced
from tests.capture.server import ModelServer

Body = Any


@pytest.fixture
def server() -> Iterator[ModelServer]:
    def echo(body: Body) -> str:
        return str(body["messages"][-1]["content"])

    with ModelServer(reply=echo) as running:
        yield running


class Agent:
    """Asks the model what it was asked."""

    name = "echo"

    def __init__(self, url: str) -> None:
        self.url = url
        self.at_once = self.most_at_once = 0

    async def run(self, task: str) -> str:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async with openai.AsyncOpenAI(
                base_url=self.url, api_key="sk-0123456789", max_retries=0
            ) as client:
                answer = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": task}]
                )
            if "fail" in task:
                raise ValueError("told to")
            if "late" in task:
                await asyncio.sleep(30)
            return answer.choices[0].message.content or ""
        finally:
            self.at_once -= 1


async def test_runs_come_in_the_order_of_the_tasks_with_their_rewards(server: ModelServer) -> None:
    agent = Agent(server.url)
    tasks = [f"task {number}" for number in range(12)]
    done = await collect(agent, tasks, lambda task, said: task == said, concurrency=3, attempts=2)

    assert [run.task for run in done.runs] == [task for task in tasks for _ in range(2)]
    assert all((run.result, run.reward, run.calls) == (run.task, 1.0, 1) for run in done.runs)
    assert len(done.dataset) == len(server.seen) == 24
    assert {item.agent for item in done.dataset} == {"echo"}
    assert len({item.task_id for item in done.dataset}) == 12
    assert 1 < agent.most_at_once <= 3
    assert str(done) == "24 attempts at 12 tasks, 0 failed, 24 calls, mean reward 1.000"


async def test_failed_and_late_episodes_stay_as_data_with_their_error(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    done = await collect(
        Agent(server.url),
        ["fine", "fail", "late"],
        lambda _task, _said: 1.0,
        dataset=dataset,
        retries=1,
        timeout_seconds=1.0,
    )
    fine, failed, late = done.runs
    assert (fine.error, failed.error) == (None, "ValueError: told to")
    assert late.error == "no result after 1.0 seconds"
    assert done.failed == (failed, late)
    assert [len(run.episode_ids) for run in done.runs] == [1, 2, 2]
    errors = [item.metadata.get("episode_error") for item in dataset if item.reward == 0.0]
    assert sorted(map(str, errors)) == sorted([str(failed.error)] * 2 + [str(late.error)] * 2)


async def test_an_attempt_without_a_call_has_failed_and_leaves_an_empty_item(
    server: ModelServer,
) -> None:
    agent = Agent(server.url)

    async def sometimes(task: str) -> str:
        return await agent.run(task) if task == "ask" else "no need"

    done = await collect(sometimes, ["ask", "guess"], lambda _task, _said: 1.0)
    assert "nothing was captured" in str(done.runs[1].error)
    (empty,) = [item for item in done.dataset if item.action == ""]
    assert (empty.state, empty.reward, empty.agent) == ("guess", 0.0, "sometimes")

    with pytest.raises(DataError, match=r"no task was captured.*needs the proxy"):
        await collect(sometimes, ["guess"], lambda _task, _said: 1.0)


async def test_plain_agents_and_items_as_tasks() -> None:
    @traced
    def act(item: str) -> str:
        time.sleep(0.01)
        return item[::-1]

    def agent(task: TrajectoryItem) -> str:
        return act(task.state)

    tasks = [TrajectoryItem(f"s{k}", "", task_id=f"t{k}") for k in range(4)]
    done = await collect(agent, tasks, None, failure_reward=None, progress=False)
    assert {item.task_id: item.action for item in done.dataset.waiting} == {
        f"t{k}": f"{k}s" for k in range(4)
    }


async def test_a_reward_that_is_no_number_is_named() -> None:
    with pytest.raises(CallbackError, match=r"reward of task .* raised"):
        await collect(traced(str.upper), ["a"], lambda _task, _said: 1 / 0)


async def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="callable, or have a method run"):
        await collect(object(), ["a"])  # type: ignore[arg-type]  # the claim
    with pytest.raises(ConfigError, match="at least 1"):
        await collect(str.upper, ["a"], concurrency=0)


@pytest.mark.parametrize("system_prompt", [None, "Be brief."])
async def test_imitation_refuses_an_agent_that_it_would_not_run(system_prompt: str | None) -> None:
    config = SFTConfig(model="tiny", system_prompt=system_prompt)
    for agent in (Agent("http://127.0.0.1:1"), str.upper, lambda task: task):
        with pytest.raises(ConfigError, match=r"does not run agents.*without agent="):
            await SFTTrainer(config, agent=agent).check_agent()


async def test_a_system_prompt_for_an_agent_is_refused_since_it_would_not_reach_the_model() -> None:
    config = VeRLConfig(model="tiny", system_prompt="Be brief.")
    trainer = VeRLTrainer(config, [RewardSpec("length", 1.0, fn=len)], agent=str.upper)
    with pytest.raises(ConfigError, match="system_prompt has no effect with agent="):
        await trainer.train(["a"])
