"""A member of the population: a candidate with its origin and its scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

from orbiter.train.evolution.strategy import Score

C = TypeVar("C")
Origin = Literal["initial", "mutate", "crossover", "select"]


@dataclass(slots=True, eq=False)
class Member(Generic[C]):
    """A candidate with its number, parents and scores."""

    number: int
    """Order of birth over the whole run, from 0; decides between equal scores."""
    candidate: C
    key: str
    """The same for equal candidates."""
    name: str
    """Its origin: "initial 3", "child 17" (the number of its slot), "select 25". The same in a
    resumed run, whichever call ended first."""
    origin: Origin
    epoch: int
    """The epoch in which it was made, from 1."""
    parents: tuple[int, ...] = ()
    """Numbers of the members it was made from."""
    scores: list[Score] = field(default_factory=list)
    """One for each evaluation; more than one with `replicates` or `contenders`."""
    tried: int = 0
    """Evaluations begun, including failed ones."""
    error: str | None = None
    """The reason why it has no score, if its first evaluation failed. A later failure is counted,
    but does not affect the scores that are there."""

    @property
    def score(self) -> float:
        """Mean over its evaluations; minus infinity if it failed or was never scored."""
        if self.error is not None or not self.scores:
            return -math.inf
        if len(self.scores) == 1:
            return self.scores[0].value
        return mean_score(self.scores)

    def pooled(self) -> Score:
        """Return its evaluations as one: mean value, mean per instance, texts of the last one."""
        if not self.scores:
            return Score(-math.inf)
        if len(self.scores) == 1:
            return self.scores[0]
        return replace(self.scores[-1], value=self.score, instances=mean_instances(self.scores))

    @property
    def cost(self) -> float:
        """Total cost of its evaluations."""
        return math.fsum(score.cost for score in self.scores)


def mean_score(scores: Sequence[Score]) -> float:
    """Return the mean value; NaN without scores."""
    if len(scores) == 1:
        return scores[0].value
    return math.fsum(score.value for score in scores) / len(scores) if scores else math.nan


def mean_instances(scores: Sequence[Score]) -> dict[str, float] | None:
    """Return each instance's mean over several evaluations; None if their instances differ."""
    names = (scores[0].instances or {}).keys()
    if not names or any((score.instances or {}).keys() != names for score in scores):
        return None
    return {
        name: math.fsum((score.instances or {})[name] for score in scores) / len(scores)
        for name in names
    }


def ranked(members: Iterable[Member[C]]) -> list[Member[C]]:
    """Return the members best first; of equal scores, the oldest. Candidates are never compared."""
    return sorted(members, key=lambda member: (-member.score, member.number))


def noise(members: Iterable[Member[C]]) -> float:
    """Return the standard deviation of one evaluation, pooled over members evaluated repeatedly.

    s^2 = sum_m sum_i (x_mi - mean_m)^2 / sum_m (n_m - 1); 0 if no member was evaluated twice.
    """
    squares, freedom = 0.0, 0
    for member in members:
        if len(member.scores) > 1 and member.error is None:
            mean = member.score
            squares += math.fsum((score.value - mean) ** 2 for score in member.scores)
            freedom += len(member.scores) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def most_surely_best(members: Sequence[Member[C]], sigma: float) -> Member[C]:
    """Return the member with the highest lower bound, mean - sigma / sqrt(n).

    Under noise the highest mean usually belongs to a lucky member; the highest mean minus one
    standard error does not. Without noise (sigma 0) this is the oldest of the highest scores.
    """
    return min(
        members,
        key=lambda m: (-(m.score - sigma / math.sqrt(max(1, len(m.scores)))), m.number),
    )
