"""What a comparison found, and what it could have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orbiter.train.comparison.contestant import Outcome
from orbiter.train.comparison.requirement import TOTAL, Requirement, Verdict
from orbiter.train.evaluation import Interval, Looks
from orbiter.train.runlog.cost import Cost

DIFFER = (0.1, 0.3, 0.5)
"""Shares of differing items for which a plan states the detectable difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a comparison will do, known before the first answer."""

    looks: Looks
    detectable: Mapping[float, float]
    """For passes and failures: for each share of items on which the two differ, the smallest
    difference that is found four times out of five."""
    by: str | None
    """Field whose values are the slices."""

    @property
    def lines(self) -> list[str]:
        """The plan as text."""
        looks, most = self.looks, self.looks.sizes[-1]
        where = ", ".join(map(str, looks.sizes))
        shares = "; ".join(
            f"{difference:.3f} if the two differ on {share:.0%} of the items"
            for share, difference in self.detectable.items()
        )
        # Differences of one on a share s of the items have the spread sqrt(s); this is per unit of
        # it.
        scaled = self.detectable[DIFFER[0]] / DIFFER[0] ** 0.5
        return [
            f"{most} items, looks after {where}, together {looks.confidence:.0%} confidence",
            f"detectable difference of passes (4 times out of 5): {shares}",
            f"detectable difference of other rewards: {scaled:.3f} standard deviations of the "
            "paired difference",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two models."""

    name: str
    means: Mapping[str, Interval]
    """The mean of the total and of each reward, at the confidence of a single interval."""
    failed: int
    """Items without a reward: failed episodes, or rewards that were skipped."""
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The difference on the items with one value of a field."""

    value: str
    difference: Interval
    """B - A in the total reward; the intervals of all slices hold together."""

    @property
    def regressed(self) -> bool:
        """Whether B is worse than A here."""
        return self.difference.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRequirement:
    """A requirement and whether it is met."""

    requirement: Requirement
    verdict: Verdict
    why: str = ""
    """Why it is undecided although the interval alone would meet it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of `compare`; a difference is B - A."""

    a: Side
    b: Side
    plan: Plan
    items: int
    """Items that both models were given; fewer than planned if it stopped early."""
    differences: Mapping[str, Interval]
    """The total reward's, as "reward", and each reward's, as "reward/NAME"."""
    slices: Sequence[Slice]
    requirements: Sequence[CheckedRequirement]
    detectable: float | None
    """Smallest difference in the total reward that the whole plan finds four times out of five,
    given the measured spread; None if it is unknown."""
    tasks: Sequence[object]
    """The items, in the order in which they were compared."""
    outcomes_a: Sequence[Outcome]
    outcomes_b: Sequence[Outcome]
    allow_regressions: bool = True

    @property
    def difference(self) -> Interval:
        """The difference in the total reward."""
        return self.differences[TOTAL]

    @property
    def stopped_early(self) -> bool:
        """Whether it stopped before the last item, because everything was decided."""
        return self.items < self.plan.looks.sizes[-1]

    @property
    def regressions(self) -> list[Slice]:
        """The slices in which B is worse."""
        return [part for part in self.slices if part.regressed]

    @property
    def verdict(self) -> Verdict | None:
        """Whether B may be shipped: all requirements together; None without requirements."""
        if self.regressions and not self.allow_regressions:
            return "not met"
        verdicts = [checked.verdict for checked in self.requirements]
        if not verdicts and self.allow_regressions:
            return None
        return next((v for v in ("not met", "undecided") if v in verdicts), "met")

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, without the answers, as JSON values; infinite ends are None."""
        looks = self.plan.looks
        return {
            "a": _side(self.a),
            "b": _side(self.b),
            "items": self.items,
            "planned_items": looks.sizes[-1],
            "looks": list(looks.sizes),
            "confidence": looks.confidence,
            "differences": {name: _ends(each) for name, each in self.differences.items()},
            "detectable": self.detectable,
            "by": self.plan.by,
            "slices": [
                {"value": s.value, "regressed": s.regressed, **_ends(s.difference)}
                for s in self.slices
            ],
            "requirements": [
                {"requirement": str(j.requirement), "verdict": j.verdict, "why": j.why}
                for j in self.requirements
            ],
            "verdict": self.verdict,
        }


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "means": {name: _ends(each) for name, each in side.means.items()},
        "failed": side.failed,
        "cost": side.cost.as_dict(),
    }


def _ends(interval: Interval) -> dict[str, float | int | None]:
    from math import isfinite

    return {name: x if isfinite(x) else None for name, x in interval._asdict().items()}
