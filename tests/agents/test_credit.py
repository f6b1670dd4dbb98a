"""The credit of a step's episodes, token by token, against plain floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from orbiter.train.agents import Episode, current_episode
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import value
from orbiter.train.errors import ConfigError
from orbiter.train.serve.live import LivePolicy
from orbiter.train.verl import RewardSpec, VeRLConfig
from orbiter.train.verl.episodes import credit_episodes, with_truncation
from orbiter.train.verl.play import PlaySetting, ScoredEpisodes, play
from orbiter.train.verl.reward import SampleScores
from orbiter.train.verl.tasks import as_tasks
from tests.agents.playing import ask, spread, tiny
from tests.rl import by_hand


@pytest.fixture(scope="module")
def valuing() -> Policy:
    """A policy whose value head tells states apart."""
    loaded = load_model("tiny", device="cpu")
    policy = make_policy(
        loaded.model, loaded.tokenizer, device="cpu", dtype="float32", value_head=True
    )
    assert policy.value_head is not None
    with torch.no_grad():
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    return policy


async def paid(task: str) -> str:
    """Ask three or four turns in two streams, with step rewards; fail in the third attempt."""
    attempt = current_episode().attempt
    current_episode().step_reward(0.01)  # before the first turn: the first turn's
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    messages.append(await ask(messages))
    current_episode().step_reward(0.3 * attempt)
    current_episode().step_reward(0.1)
    messages.append({"role": "user", "content": "And?"})
    await ask(messages)
    messages[1] = {"role": "assistant", "content": "..."}
    said = await ask(messages)
    current_episode().step_reward(-0.25)
    if attempt == 1:
        said = await ask([*messages, said, {"role": "user", "content": "More."}])
    if attempt == 2:
        raise RuntimeError("a tool is down")
    return str(said["content"])


async def played(policy: Policy, config: VeRLConfig) -> ScoredEpisodes:
    setting = PlaySetting(policy, config, paid, [RewardSpec("probe", 1.0, spread)])
    async with LivePolicy(policy, max_new_tokens=4) as live:
        seeds = [[1, 2, 3, 4], [5, 6, 7, 8]]
        return await play(setting, live, as_tasks(["hello", "abc"]), seeds)


def rewards_of(episode: Episode) -> list[float]:
    """The reward of each turn, as `paid` gives them."""
    rewards = [0.01 + 0.3 * episode.attempt + 0.1, 0.0, -0.25, 0.0][: len(episode.turns)]
    rewards[-1] += spread(episode.output)
    return rewards


def tokens_of(episodes: Sequence[Episode]) -> list[list[tuple[int, int, int]]]:
    """(row, position, turn) of each trained token of each episode, in the order of the turns."""
    row, places = 0, []
    for episode in episodes:
        here = []
        for stream in episode.streams:
            here += [(k, row, t) for t, k in enumerate(stream.turn) if stream.mask[t]]
            row += 1
        places.append([(r, t, k) for k, r, t in sorted(here)])
    return places


@pytest.mark.parametrize("credit", ["episode", "turn"])
async def test_ppo_estimates_over_the_whole_episode_whatever_streams_it_is_in(
    valuing: Policy, credit: str
) -> None:
    config = tiny(algorithm="ppo", credit=credit, gamma=0.9, gae_lambda=0.8, group_size=4)
    episodes, scores = await played(valuing, config)
    kept = [e for e in episodes if not e.failed]
    assert [len(e.turns) for e in kept] == [3, 4, 3] * 2
    assert [len(e.streams) for e in kept] == [2, 2, 2] * 2

    def compare() -> None:
        batch = credit_episodes(valuing, config, episodes, scores).credited.batch
        assert batch is not None
        assert batch.advantage is not None
        assert batch.return_ is not None
        values = value(valuing, batch)
        assert float(values[batch.mask].std()) > 0.1
        advantages, returns, order = [], [], []
        for episode, places in zip(kept, tokens_of(kept), strict=True):
            v = [values[r, t].item() for r, t, _ in places]
            turns = [k for _, _, k in places]
            first = [turns.index(k) for k in range(len(episode.turns))]
            ends = {len(turns) - 1 - turns[::-1].index(k): k for k in range(len(episode.turns))}
            paid_ = rewards_of(episode)
            if credit == "episode":
                r = [paid_[ends[i]] if i in ends else 0.0 for i in range(len(turns))]
                (a,) = by_hand.gae([r], [v], 0.9, 0.8)
                g = [x + y for x, y in zip(a, v, strict=True)]
            else:
                (by_turn,) = by_hand.gae([paid_], [[v[i] for i in first]], 0.9, 0.8)
                a = [by_turn[k] for k in turns]
                g = [by_turn[k] + v[first[k]] for k in turns]
            advantages.append(a)
            returns.append(g)
            order.append(places)
        white = by_hand.whiten(advantages)
        for places, a, g in zip(order, white, returns, strict=True):
            got_a = [batch.advantage[r, t].item() for r, t, _ in places]
            got_g = [batch.return_[r, t].item() for r, t, _ in places]
            assert got_a == pytest.approx(a, rel=1e-3, abs=1e-4)
            assert got_g == pytest.approx(g, rel=1e-3, abs=1e-4)
        assert (batch.advantage[~batch.mask] == 0).all()

    await work(compare)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("credit", ["turn", "returns", "gigpo"])
async def test_credit_by_turn_reaches_every_token_of_the_turn(
    valuing: Policy, credit: str, algorithm: str
) -> None:
    config = tiny(algorithm=algorithm, credit=credit, gamma=0.7, gigpo_weight=0.5, group_size=4)
    episodes, scores = await played(valuing, config)

    def compare() -> None:
        credited = credit_episodes(valuing, config, episodes, scores)
        batch = credited.credited.batch
        assert batch is not None
        assert batch.advantage is not None
        places = iter(tokens_of([e for e in episodes if not e.failed]))
        for at in (0, 4):
            group = [e for e in episodes[at : at + 4] if not e.failed]
            want = expected(group, credit, algorithm)
            for episode, by_turn in zip(group, want, strict=True):
                for r, t, k in next(places):
                    got = batch.advantage[r, t].item()
                    assert got == pytest.approx(by_turn[k], rel=1e-4, abs=1e-5)
                recorded = credited.by_turn[episodes.index(episode)]
                assert recorded == pytest.approx(by_turn, rel=1e-4, abs=1e-5)
        assert credited.by_turn[2] is None

    await work(compare)


def expected(group: list[Episode], credit: str, algorithm: str) -> list[list[float]]:
    rows = [by_hand.returns(rewards_of(episode), 0.7) for episode in group]
    n, divide = len(group), algorithm == "grpo"
    factor = 1.0 if divide else n / (n - 1)
    if credit != "gigpo":
        every = by_hand.turn_advantage(rows, credit == "turn", divide)
        return [[factor * a for a in row] for row in every]
    totals = [math.fsum(rewards_of(episode)) for episode in group]
    mean = math.fsum(totals) / n
    whole = (
        by_hand.group_advantage([totals])[0] if divide else [factor * (t - mean) for t in totals]
    )
    prompts: list[list[int]] = []
    states = []
    for episode in group:
        for turn in episode.turns:
            if turn.prompt_token_ids not in prompts:
                prompts.append(turn.prompt_token_ids)
        states.append([prompts.index(turn.prompt_token_ids) for turn in episode.turns])
    assert len({row[0] for row in states}) == 1  # the first turn is in the same state
    assert len({state for row in states for state in row}) > 3
    within = by_hand.state_advantage(rows, states, divide)
    return [[a + 0.5 * s for s in row] for a, row in zip(whole, within, strict=True)]


def test_ppo_refuses_credit_that_compares_episodes() -> None:
    for credit in ("returns", "gigpo"):
        with pytest.raises(ConfigError, match=f"credit='{credit}' compares episodes"):
            tiny(algorithm="ppo", credit=credit)
    with pytest.raises(ConfigError, match="credit must be"):
        tiny(credit="kevin")


class Cut:
    def __init__(self, stop_reason: str) -> None:
        self.truncated = stop_reason in ("max_turns", "max_tokens", "context")


def test_truncated_episodes_are_scored_masked_or_penalised() -> None:
    episodes: list[Any] = [Cut(r) for r in ("done", "max_turns", "context", "timeout")]
    scores = SampleScores([1.0, 0.5, None, None], {"a": [1.0, 0.5, None, None]}, 0)
    assert with_truncation(scores, episodes, "score") == scores
    assert with_truncation(scores, episodes, "mask").total == [1.0, None, None, None]
    assert with_truncation(scores, episodes, -2).total == [1.0, -1.5, None, None]
    for wrong in ("drop", None, float("nan")):
        with pytest.raises(ConfigError, match="on_truncation"):
            tiny(on_truncation=wrong)
