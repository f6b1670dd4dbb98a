"""Training by reward: PPO, GRPO and relatives. Does not import torch until it trains."""

from orbiter.train.verl.config import VeRLAlgorithm, VeRLConfig
from orbiter.train.verl.reward import OnRewardError, RewardFn, RewardSpec
from orbiter.train.verl.trainer import VeRLTrainer

__all__ = [
    "OnRewardError",
    "RewardFn",
    "RewardSpec",
    "VeRLAlgorithm",
    "VeRLConfig",
    "VeRLTrainer",
]
