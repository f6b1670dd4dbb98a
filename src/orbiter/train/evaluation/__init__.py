"""Scores with their uncertainty: intervals, paired comparison, pass@k; raters' agreement."""

from orbiter.train.evaluation.agreement import alpha_of, cohen_kappa, krippendorff_alpha
from orbiter.train.evaluation.corrected import Confusion, corrected_mean, corrected_rate
from orbiter.train.evaluation.interval import Interval, mean_interval, paired_difference
from orbiter.train.evaluation.judgement import Judgement, judgement_lines, read_judgements
from orbiter.train.evaluation.pass_at_k import pass_at_k
from orbiter.train.evaluation.power import detectable_difference
from orbiter.train.evaluation.score import Scores, score
from orbiter.train.evaluation.sequential import Looks, interval_at, plan_looks

__all__ = [
    "Confusion",
    "Interval",
    "Judgement",
    "Looks",
    "Scores",
    "alpha_of",
    "cohen_kappa",
    "corrected_mean",
    "corrected_rate",
    "detectable_difference",
    "interval_at",
    "judgement_lines",
    "krippendorff_alpha",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "plan_looks",
    "read_judgements",
    "score",
]
