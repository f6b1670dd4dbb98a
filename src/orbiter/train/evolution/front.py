"""The front over instances, and the race of a child against its parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Vector = tuple[float, ...]


def newest_of_front(vectors: Sequence[Vector]) -> list[int]:
    """Return the indices of the vectors that no other one dominates, the last of equal ones.

    One dominates another where it is at least as good on every instance and better on one. Being
    best on an instance is not enough to stay: another may be as good there and better elsewhere.
    """
    last = {vector: index for index, vector in enumerate(vectors)}
    front: list[Vector] = []
    # In order of falling sums nobody can be dominated by one that comes later.
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
    """How far behind a child may fall, in score, before it is given up."""
    lead: float = 0.0
    """Sum of the differences so far, child minus parent."""

    def run(self, name: str, score: float) -> None:
        """Take note of the child's score on an instance."""
        self.lead += score - self.parent[name]

    def is_lost(self, ahead: Sequence[str]) -> bool:
        """Say whether the child fell too far behind, or cannot reach its parent any more."""
        possible = sum(self.perfect - self.parent[name] for name in ahead)
        return self.lead < -self.slack or self.lead + possible < -1e-12
