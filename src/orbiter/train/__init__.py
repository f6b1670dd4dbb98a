"""From an agent's traces to a better agent: the names of the public guide, and nothing heavy."""

from orbiter.train.trajectory import TrajectoryItem

__all__ = ["TrajectoryItem"]
