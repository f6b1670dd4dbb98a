"""Learning from preferences: pairs of a better and a worse answer, or answers with a verdict.

Does not import torch until it trains.
"""

from orbiter.train.preference.config import PreferenceConfig, PreferenceMethod
from orbiter.train.preference.reward_model import RewardModel
from orbiter.train.preference.reward_model_config import RewardModelConfig
from orbiter.train.preference.reward_model_trainer import RewardModelTrainer
from orbiter.train.preference.trainer import PreferenceTrainer

__all__ = [
    "PreferenceConfig",
    "PreferenceMethod",
    "PreferenceTrainer",
    "RewardModel",
    "RewardModelConfig",
    "RewardModelTrainer",
]
