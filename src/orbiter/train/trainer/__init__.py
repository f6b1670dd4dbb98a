"""The trainer base class with its lifecycle, settings and metrics."""

from orbiter.train.trainer.config import TrainConfig
from orbiter.train.trainer.lifecycle import TrainerState
from orbiter.train.trainer.metrics import TrainMetrics
from orbiter.train.trainer.trainer import Trainer

__all__ = ["TrainConfig", "TrainMetrics", "Trainer", "TrainerState"]
