"""Learning from preferences: pairs of a better and a worse answer, or answers with a verdict.

Does not import torch until it trains.
"""

from orbiter.train.preference.config import PreferenceConfig, PreferenceMethod
from orbiter.train.preference.trainer import PreferenceTrainer

__all__ = ["PreferenceConfig", "PreferenceMethod", "PreferenceTrainer"]
