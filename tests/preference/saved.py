"""A small saved reward model."""

from __future__ import annotations

from pathlib import Path

from orbiter.train import RewardModelConfig, RewardModelTrainer, TrajectoryItem


async def saved_reward_model(folder: Path) -> Path:
    """Save a reward model of "tiny", and return its folder.

    Its head is untrained, which suffices to tell answers apart.
    """
    item = TrajectoryItem("q", "a", 1.0)
    config = RewardModelConfig(model="tiny", device="cpu", dtype="float32", progress=False)
    return await RewardModelTrainer(config, dataset=[item]).save(folder)
