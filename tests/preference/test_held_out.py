"""Held-out data without pairs are named as the held-out data, not as the training data."""

from __future__ import annotations

import pytest

from orbiter.train import (
    PreferenceConfig,
    PreferenceTrainer,
    RewardModelConfig,
    RewardModelTrainer,
    TrainError,
    TrajectoryItem,
)

PAIR = [TrajectoryItem("q", "good", 1.0), TrajectoryItem("q", "bad", 0.0)]
SINGLE = [TrajectoryItem("q", "good", 1.0)]


@pytest.mark.parametrize("kind", ["prefer", "reward model"])
async def test_held_out_data_without_pairs_are_named(kind: str) -> None:
    trainer: PreferenceTrainer | RewardModelTrainer
    if kind == "prefer":
        trainer = PreferenceTrainer(
            PreferenceConfig(model="tiny"), dataset=PAIR, eval_dataset=SINGLE
        )
    else:
        trainer = RewardModelTrainer(
            RewardModelConfig(model="tiny"), dataset=PAIR, eval_dataset=SINGLE
        )
    with pytest.raises(TrainError, match=r"in the held-out data .* single attempt"):
        await trainer.train()
