"""An agent's episodes through the real verl."""

from __future__ import annotations

from pathlib import Path

import pytest

from orbiter.train.verl import RewardSpec
from tests.verl_cluster.rehearsing import rehearsal
from tests.verl_cluster.shipped_agents import two_turns, vowels_said

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]


async def test_an_agent_of_two_turns_learns(tmp_path: Path) -> None:
    run = rehearsal(
        tmp_path,
        [RewardSpec("vowels", 1.0, vowels_said)],
        agent=two_turns,
        batch_size=8,
        group_size=8,
        epochs=6,
        max_response_length=8,
    )
    await run.train(["Say something.", "Sing."] * 16)
    rewards = [row["reward"] for row in run.history]
    assert rewards[0] < 0.3, rewards
    assert rewards[-1] > 0.8, rewards
    assert max(row["verl/training/rollout_probs_diff_max"] for row in run.history) < 1e-4
    assert run.history[0]["turns"] == 2
