"""The Pareto front over instances, and the race of a child against its parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Vector = tuple[float, ...]


def newest_of_front(vectors: Sequence[Vector]) -> list[int]:
    """Return the indices of the vectors that no other vector dominates, the last of equal ones.

    A vector dominates another if it is at least as good on every instance and better on one. Being
    best on one instance is not enough to stay: another vector may be as good there and better
    elsewhere.
    """
    last = {vector: index for index, vector in enumerate(vectors)}
    front: list[Vector] = []
    # In order of falling sums no vector can be dominated by a later one.
    for vector in sorted(last, key=sum, reverse=True):
        if not any(_covers(other, vector) for other in front):
            front.append(vector)
    return sorted(last[vector] for vector in front)


def _covers(first: Vector, second: Vector) -> bool:
    return all(a >= b for a, b in zip(first, second, strict=True))


@dataclass(slots=True)
class Race:
    """A child against its parent's cached scores, instance by instance."""

    parent: Mapping[str, float]
    perfect: float
    slack: float
    """How far a child's summed score may fall below its parent's before it is abandoned."""
    lead: float = 0.0
    """Sum of the differences so far, child minus parent."""

    def record(self, name: str, score: float) -> None:
        """Add the child's score on an instance."""
        self.lead += score - self.parent[name]

    def is_lost(self, ahead: Sequence[str]) -> bool:
        """Return whether the child fell too far back, or cannot reach its parent any more."""
        possible = sum(self.perfect - self.parent[name] for name in ahead)
        return self.lead < -self.slack or self.lead + possible < -1e-12
