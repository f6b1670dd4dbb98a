"""Learning from logged episodes without running an agent. Does not import torch until it trains."""

from orbiter.train.offline.config import OfflineConfig, OfflineMethod
from orbiter.train.offline.trainer import OfflineTrainer

__all__ = ["OfflineConfig", "OfflineMethod", "OfflineTrainer"]
