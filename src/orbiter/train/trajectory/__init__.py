"""What happened: items, and the data set that keeps them."""

from orbiter.train.trajectory.dataset import TrajectoryDataset
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.strategy import DefaultStrategy, TrajectoryStrategy

__all__ = ["DefaultStrategy", "TrajectoryDataset", "TrajectoryItem", "TrajectoryStrategy"]
