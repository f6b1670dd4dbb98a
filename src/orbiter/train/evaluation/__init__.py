"""Scores with their uncertainty: intervals, paired comparison and pass@k."""

from orbiter.train.evaluation.interval import Interval, mean_interval, paired_difference
from orbiter.train.evaluation.pass_at_k import pass_at_k
from orbiter.train.evaluation.score import Scores, score

__all__ = ["Interval", "Scores", "mean_interval", "paired_difference", "pass_at_k", "score"]
