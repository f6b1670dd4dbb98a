"""The result of an evolution: the best candidate, its history and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from orbiter.train.errors import DataError
from orbiter.train.evaluation import Interval, mean_interval
from orbiter.train.evolution.config import StopReason
from orbiter.train.evolution.member import Member, mean_instances
from orbiter.train.evolution.strategy import EpochRecord, Score
from orbiter.train.identity import Codec

C = TypeVar("C")


class Ancestor(NamedTuple):
    """One step in the line of descent of a candidate."""

    number: int
    candidate: Any
    score: float
    origin: str
    diff: str
    """Unified diff of the candidate's text against its first parent's; empty for the first."""


class Baseline(NamedTuple):
    """The score of a simpler search, which `best_score` should beat."""

    name: str
    score: float
    interval: Interval | None
    evaluations: int

    def __str__(self) -> str:
        return f"{self.name}: {self.score:.4g} in {self.evaluations} evaluations"


@dataclass(frozen=True, slots=True)
class EvolutionResult(Generic[C]):
    """The outcome of `EvolutionPipeline.run`."""

    best: C | None
    """The best candidate ever evaluated; None if none was."""
    best_score: float
    """Mean over its evaluations, with `confirm` over the fresh ones only; NaN without a best."""
    best_interval: Interval | None
    """95 % interval of `best_score`, over its evaluations or the instances in them; None for one
    bare number, which has no spread."""
    baseline: Baseline
    """The requested baseline, at as many evaluations; otherwise the best of the first epoch, which
    is best-of-N for the cost of that epoch."""
    initial_score: float
    """Best score among the initial candidates: the score without evolution."""
    epochs_completed: int
    evaluations: int
    """Evaluations begun, including those taken from the journal."""
    cache_hits: int
    failures: int
    cost: float
    stop_reason: StopReason
    stop_cause: str
    """The error that ended the run, with `stop_reason` "failures" or "budget"; else empty."""
    history: Sequence[EpochRecord] = field(repr=False)
    population: Sequence[C] = field(repr=False)
    """The candidates alive at the end, best first."""
    holdout_score: float | None
    """The best candidate's score by `holdout`, which the search did not use; None without one."""
    members: Sequence[Member[C]] = field(repr=False)
    """All members ever made, in order of birth."""

    def lineage(self, candidate: C) -> list[Ancestor]:
        """Return the line of descent from an initial candidate to this one, with the changes.

        Raises:
            DataError: the candidate is not part of this run.
        """
        by_identity = (m for m in self.members if m.candidate is candidate)
        member = next(by_identity, None)
        if member is None:
            codec = Codec()  # compares arrays too, for which == gives no yes or no
            written = codec.write(candidate)
            by_value = (
                m
                for m in self.members
                if (codec.write(m.candidate) == written if written else m.candidate == candidate)
            )
            member = next(by_value, None)
        if member is None:
            raise DataError(f"no member of this run is the candidate {candidate!r:.80}")
        line = [member]
        while line[-1].parents:
            line.append(self.members[line[-1].parents[0]])
        line.reverse()
        befores = [None, *line[:-1]]
        return [
            Ancestor(m.number, m.candidate, m.score, m.origin, _diff(before, m))
            for before, m in zip(befores, line, strict=True)
        ]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one row per member ever made: for a table, a data frame, a file."""
        return [
            {
                "number": m.number,
                "candidate": m.candidate,
                "score": None if math.isinf(m.score) else m.score,
                "evaluations": len(m.scores),
                "epoch": m.epoch,
                "origin": m.origin,
                "parents": list(m.parents),
                "cost": m.cost,
                "error": m.error,
            }
            for m in self.members
        ]

    def __str__(self) -> str:
        interval = f" {self.best_interval}" if self.best_interval else ""
        cause = f" ({self.stop_cause})" if self.stop_cause else ""
        return (
            f"best {self.best_score:.4g}{interval} (initial {self.initial_score:.4g}; "
            f"{self.baseline}) after "
            f"{self.epochs_completed} epochs, {self.evaluations} evaluations, "
            f"{self.failures} failures; ended by {self.stop_reason}{cause}"
        )


def interval_of(scores: Sequence[Score]) -> Interval | None:
    """Return the 95 % interval of the mean of `scores`, or None for a single number.

    If every evaluation has the same instances and its value is their mean, each instance counts as
    one observation: its mean over the evaluations.
    """
    by_instance = mean_instances(scores) or {}
    if len(by_instance) > 1 and all(_is_mean_of_instances(s.instances, s.value) for s in scores):
        return mean_interval(by_instance.values())
    if len(scores) > 1:
        return mean_interval([score.value for score in scores])
    return None


def _is_mean_of_instances(instances: object, value: float) -> bool:
    if not isinstance(instances, dict) or not instances:
        return False
    mean = math.fsum(instances.values()) / len(instances)
    return math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-9)


def _diff(before: Member[C] | None, member: Member[C]) -> str:
    if before is None:
        return ""
    import difflib  # imported here because it takes 10 ms, which only readers of diffs should pay

    old, new = _lines(before.candidate), _lines(member.candidate)
    names = (f"candidate {before.number}", f"candidate {member.number}")
    return "\n".join(difflib.unified_diff(old, new, *names, lineterm=""))


def _lines(candidate: object) -> list[str]:
    if isinstance(candidate, str):
        return candidate.splitlines()
    if isinstance(candidate, dict):
        return [f"{name}: {line}" for name, part in candidate.items() for line in _lines(part)]
    return [repr(candidate)]
