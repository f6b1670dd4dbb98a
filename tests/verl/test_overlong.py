from __future__ import annotations

from typing import Any

import pytest

from orbiter.train import ConfigError, RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.engine.rollout import Rollout
from orbiter.train.verl.overlong import with_overlong_penalty
from orbiter.train.verl.reward import SampleScores
from tests.agents.playing import two_turns


def same(_: str) -> float:
    return 1.0


def answer(tokens: int) -> Rollout:
    return Rollout([1] + [2] * tokens, [False] + [True] * tokens, [0.0] * (tokens + 1), 1)


def test_totals_are_shaped_and_rewards_stay() -> None:
    config = VeRLConfig(max_response_length=10, overlong_buffer=4, overlong_penalty=2.0)
    scores = SampleScores([1.0, 1.0, None, 1.0], {"r": [1.0, 1.0, None, 1.0]}, 0)
    rollouts = [answer(n) for n in (6, 8, 10, 10)]
    shaped = with_overlong_penalty(config, scores, rollouts)
    assert shaped.scores.total == [1.0, 0.0, None, -1.0]
    assert shaped.scores.by_name == scores.by_name
    assert shaped.metrics == {"overlong": 0.75, "overlong_penalty": pytest.approx(-5 / 4)}
    off = with_overlong_penalty(VeRLConfig(), scores, rollouts)
    assert off.scores is scores
    assert off.metrics == {}


async def test_a_policy_that_is_paid_nothing_learns_to_stop() -> None:
    """Every answer has the same reward, so the penalty is all that there is to learn from."""
    config = VeRLConfig(
        model="tiny", epochs=10, batch_size=4, group_size=8, max_response_length=8,
        learning_rate=3e-3, overlong_buffer=8,
    )  # fmt: skip
    run = VeRLTrainer(config, [RewardSpec("same", fn=same)])
    tasks = [f"Say {n}." for n in range(8)]
    await run.train(tasks)
    first, last = run.history[0], run.history[-1]
    assert first["reward"] == last["reward"] == 1.0, "the metrics keep the rewards as given"
    assert first["length"] > 7.5
    assert last["length"] < first["length"] - 2
    assert last["overlong_penalty"] > first["overlong_penalty"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"overlong_penalty": 2.0}, "no effect without overlong_buffer"),
        ({"overlong_buffer": 65}, "at most max_response_length=64"),
        ({"overlong_buffer": -1}, "overlong_buffer"),
        ({"overlong_buffer": 4, "overlong_penalty": 0.0}, "overlong_penalty"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VeRLConfig(**settings)


async def test_episodes_have_another_setting_for_that() -> None:
    run = VeRLTrainer(
        VeRLConfig(model="tiny", overlong_buffer=4),
        [RewardSpec("same", fn=same)],
        agent=two_turns,
    )
    with pytest.raises(ConfigError, match="on_truncation"):
        await run.train(["a"])
