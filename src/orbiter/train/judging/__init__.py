"""Judges: language models that score answers and episodes, with what is known of their errors."""

from orbiter.train.judging.base import Attempt, BaseJudge, Ruling
from orbiter.train.judging.calibration import Calibration, calibrate
from orbiter.train.judging.group import GroupJudge
from orbiter.train.judging.logged import judge_episodes

__all__ = [
    "Attempt",
    "BaseJudge",
    "Calibration",
    "GroupJudge",
    "Ruling",
    "calibrate",
    "judge_episodes",
]
