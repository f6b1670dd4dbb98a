"""Scores with their uncertainty: intervals, paired comparison, looks at it, and pass@k."""

from orbiter.train.evaluation.interval import Interval, mean_interval, paired_difference
from orbiter.train.evaluation.pass_at_k import pass_at_k
from orbiter.train.evaluation.power import detectable_difference
from orbiter.train.evaluation.score import Scores, score
from orbiter.train.evaluation.sequential import Looks, interval_at, plan_looks

__all__ = [
    "Interval",
    "Looks",
    "Scores",
    "detectable_difference",
    "interval_at",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "plan_looks",
    "score",
]
