"""What happened: items, and the data set that keeps them."""

from orbiter.train.trajectory.item import TrajectoryItem

__all__ = ["TrajectoryItem"]
