"""One episode: the agent is not changed, and whatever goes wrong has a name."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from orbiter.train.agents import current_episode, run_episode
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import ConfigError, DataError, StateError
from orbiter.train.serve.live import LivePolicy
from tests.agents.playing import NOWHERE, ask, branching, two_turns
from tests.agents.scripted import scripted

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def blocking(task: str) -> str:
    with httpx.Client() as client:
        body = {"model": "any", "messages": [{"role": "user", "content": task}]}
        answer = client.post(NOWHERE, json=body)
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


class Runs:
    async def run(self, task: str) -> object:
        return SimpleNamespace(output=await two_turns(task))


@pytest.mark.parametrize(
    ("agent", "turns"), [(two_turns, 2), (blocking, 1), (Runs(), 2), (Runs().run, 2)]
)
async def test_agents_of_every_form_are_answered_by_the_policy(
    live: LivePolicy, agent: object, turns: int
) -> None:
    episode = await run_episode(agent, "hello", live, seed=1)
    assert episode.stop_reason == "done"
    assert not episode.failed
    assert len(episode.turns) == turns
    assert len(episode.streams) == 1
    assert episode.output == episode.turns[-1].reply.get("content", "")
    drawn = [token for turn in episode.turns for token in turn.token_ids]
    (stream,) = episode.streams
    assert [t for t, m in zip(stream.token_ids, stream.mask, strict=True) if m] == drawn


async def test_every_sampled_token_is_trained_once_although_streams_branch(
    live: LivePolicy,
) -> None:
    episode = await run_episode(branching, "hello", live, seed=2)
    assert len(episode.turns) == 4
    assert len(episode.streams) == 3
    assert episode.sampled_tokens == sum(len(turn.token_ids) for turn in episode.turns)


async def test_the_seed_decides_what_is_drawn(live: LivePolicy) -> None:
    runs = [await run_episode(two_turns, "hello", live, seed=seed) for seed in (5, 5, 6)]
    drawn = [[turn.token_ids for turn in episode.turns] for episode in runs]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


async def raises(task: str) -> str:
    await ask(HELLO)
    raise ValueError("a tool is down")


async def exits(task: str) -> str:
    sys.exit(3)


async def silent(task: str) -> str:
    return "42"


async def cancels_itself(task: str) -> str:
    await ask(HELLO)
    raise asyncio.CancelledError


async def own_time_limit(task: str) -> str:
    async with asyncio.timeout(0.001):
        await asyncio.sleep(60)
    return ""


async def hangs(task: str) -> str:
    await ask(HELLO)
    await asyncio.sleep(600)
    return ""


async def raises_for_the_length(task: str) -> str:
    """As openai's `parse` does after an answer that the limit has cut off."""
    await ask(HELLO)
    raise RuntimeError("Could not parse response content as the length limit was reached")


async def raises_for_the_tokens(task: str) -> str:
    """As the OpenAI Agents SDK does."""
    await ask(HELLO)
    raise RuntimeError("status=incomplete; IncompleteDetails(reason='max_output_tokens')")


async def forever(task: str) -> str:
    messages = list(HELLO)
    while True:
        messages += [await ask(messages), HELLO[0]]


async def forever_at_length(task: str) -> str:
    messages = list(HELLO)
    while True:
        messages += [await ask(messages), {"role": "user", "content": "More? " * 300}]


async def forever_politely(task: str) -> str:
    try:
        return await forever(task)
    except httpx.HTTPStatusError as error:
        return str(error.response.status_code)


@pytest.mark.parametrize(
    ("agent", "limits", "reason", "words"),
    [
        (raises, {}, "agent_error", "ValueError: a tool is down"),
        (exits, {}, "agent_error", "SystemExit: 3"),
        (silent, {}, "no_calls", "made no model call"),
        (cancels_itself, {}, "agent_error", "CancelledError"),
        (own_time_limit, {}, "agent_error", "TimeoutError"),
        (hangs, {"timeout_seconds": 1.0}, "timeout", None),
        (forever, {"max_turns": 3}, "max_turns", "400"),
        (forever_politely, {"max_turns": 3}, "max_turns", None),
        (forever, {"max_episode_tokens": 60}, "max_tokens", "400"),
        (forever_at_length, {}, "context", "400"),
        (raises_for_the_length, {}, "max_response", "length limit"),
        (raises_for_the_tokens, {}, "max_response", "max_output_tokens"),
    ],
)
async def test_how_an_episode_ended_has_a_name(
    live: LivePolicy, agent: object, limits: dict[str, Any], reason: str, words: str | None
) -> None:
    live.max_new_tokens = 6
    episode = await run_episode(agent, "task", live, seed=0, **limits)
    assert episode.stop_reason == reason
    assert episode.failed == (reason in ("agent_error", "timeout", "no_calls"))
    if words is None:
        assert episode.error is None
    else:
        assert words in str(episode.error)
    if limits.get("max_turns"):
        assert len(episode.turns) == 3


async def test_only_an_answer_that_was_cut_off_makes_the_agents_error_a_limit(
    policy: Policy, live: LivePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, policy, lambda _prompt, _seed: "ok")
    live.max_new_tokens = 60
    whole = await run_episode(raises_for_the_length, "task", live, seed=0)
    assert whole.turns[-1].finish_reason == "stop"
    assert whole.stop_reason == "agent_error"


async def test_calls_after_the_end_get_410_and_late_step_rewards_are_refused(
    live: LivePolicy,
) -> None:
    seen: list[object] = []
    over = threading.Event()

    def agent(task: str) -> str:
        def later() -> None:
            episode = current_episode()
            over.wait(60)
            with httpx.Client() as client:
                body = {"model": "any", "messages": HELLO}
                seen.append(client.post(NOWHERE, json=body).status_code)
            try:
                episode.step_reward(1.0)
            except StateError as error:
                seen.append(str(error))

        threads.append(threading.Thread(target=later))
        threads[0].start()
        return blocking(task)

    threads: list[threading.Thread] = []
    episode = await run_episode(agent, "hello", live, seed=0)
    over.set()
    await asyncio.to_thread(threads[0].join)
    assert len(episode.turns) == 1
    assert seen[0] == 410
    assert "after the end" in str(seen[1])


async def test_a_plain_agent_that_is_too_slow_is_refused_later(live: LivePolicy) -> None:
    ended, status = threading.Event(), list[int]()

    def agent(task: str) -> str:
        time.sleep(0.6)
        with httpx.Client() as client:
            status.append(client.post(NOWHERE, json={"model": "m", "messages": HELLO}).status_code)
        ended.set()
        return ""

    episode = await run_episode(agent, "hello", live, seed=0, timeout_seconds=0.1)
    assert episode.stop_reason == "timeout"
    await asyncio.to_thread(ended.wait, 60)
    assert status == [410]


async def test_step_rewards_come_from_tasks_and_threads_of_the_agent(live: LivePolicy) -> None:
    async def agent(task: str) -> str:
        current_episode().step_reward(1)
        thread = threading.Thread(target=lambda: current_episode().step_reward(0.5))
        thread.start()
        await asyncio.to_thread(thread.join)
        with pytest.raises(DataError, match="finite number, got nan"):
            current_episode().step_reward(float("nan"))
        await ask(HELLO)
        return ""

    episode = await run_episode(agent, "hello", live, seed=0)
    assert episode.step_rewards == (1.0, 0.5)
    with pytest.raises(StateError, match="outside an episode"):
        current_episode()


async def test_a_cancelled_run_cancels_the_agent(live: LivePolicy) -> None:
    seen: list[str] = []

    async def agent(task: str) -> str:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return ""

    running = asyncio.create_task(run_episode(agent, "hello", live, seed=0))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen == ["cancelled"]


@pytest.mark.parametrize(("agent", "words"), [(Runs, "is the class Runs"), (7, "got 7")])
async def test_what_cannot_be_run_is_refused(live: LivePolicy, agent: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await run_episode(agent, "hello", live, seed=0)
