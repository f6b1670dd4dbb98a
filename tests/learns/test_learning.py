"""Does it learn? A byte-level model that has read nothing is paid for vowels."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer

pytestmark = pytest.mark.slow

PROMPTS = [TrajectoryItem(state=s, action="") for s in ("Say something.", "Sing.") * 16]

SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"learning_rate": 2e-3, "group_size": 8, "epochs": 8},
    "ppo": {
        "learning_rate": 5e-4,
        "group_size": 4,
        "epochs": 10,
        "ppo_epochs": 4,
        "minibatch_size": 16,
        "gae_lambda": 1.0,
        "vf_coef": 20.0,
        "max_grad_norm": 5.0,
    },
}
"""PPO's value head learns from returns that spread by a few hundredths, hence its large weight."""


def vowels(output: str) -> float:
    return sum(character in "aeiouAEIOU" for character in output) / max(1, len(output))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
async def test_the_share_of_vowels_rises_from_chance_to_almost_all(
    algorithm: str, seed: int
) -> None:
    settings = {"batch_size": 8, "max_response_length": 16, "seed": seed} | SETTINGS[algorithm]
    config = VeRLConfig(algorithm=algorithm, model="tiny", **settings)  # type: ignore[arg-type]
    trainer = VeRLTrainer(config, [RewardSpec("vowels", 1.0, vowels)])
    before = (await trainer.evaluate(PROMPTS[:2], samples=16)).reward
    began = time.process_time()
    metrics = await trainer.train(PROMPTS)
    assert time.process_time() - began < 90, "seconds of CPU"
    after = (await trainer.evaluate(PROMPTS[:2], samples=16)).reward
    assert before is not None
    assert after is not None
    assert before < 0.3
    assert after > 0.9
    assert metrics.reward is not None
    assert metrics.reward > 0.9, "over the whole last epoch"
    if algorithm == "ppo":
        foresight = [row["explained_variance"] for row in trainer.history[8:32]]
        assert statistics.median(foresight) > 0.03, "a frozen value function explains exactly 0"
