"""Scores with their uncertainty: intervals, paired comparison, pass@k; raters' agreement."""

from orbiter.train.evaluation.agreement import alpha_of, cohen_kappa, krippendorff_alpha
from orbiter.train.evaluation.corrected import Confusion, corrected_mean, corrected_rate
from orbiter.train.evaluation.interval import Interval, mean_interval, paired_difference
from orbiter.train.evaluation.judgement import Judgement, judgement_lines, read_judgements
from orbiter.train.evaluation.pass_at_k import pass_at_k
from orbiter.train.evaluation.score import Scores, score

__all__ = [
    "Confusion",
    "Interval",
    "Judgement",
    "Scores",
    "alpha_of",
    "cohen_kappa",
    "corrected_mean",
    "corrected_rate",
    "judgement_lines",
    "krippendorff_alpha",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "read_judgements",
    "score",
]
