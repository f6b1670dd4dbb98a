"""Supervised fine-tuning on captured actions. Does not import torch until it trains."""

from orbiter.train.sft.config import SFTConfig
from orbiter.train.sft.trainer import SFTTrainer

__all__ = ["SFTConfig", "SFTTrainer"]
