"""The record of what agents did: items, and the data set that stores them."""

from orbiter.train.trajectory.dataset import TrajectoryDataset
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.strategy import DefaultStrategy, TrajectoryStrategy

__all__ = ["DefaultStrategy", "TrajectoryDataset", "TrajectoryItem", "TrajectoryStrategy"]
