"""Measure a model on held-out items, in a form that the report can compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.errors import DataError
from orbiter.train.evaluation import Interval, mean_interval, paired_difference
from orbiter.train.report.story import Exam, Story, Task, keep_story, paired, read_story
from orbiter.train.verl import RewardSpec, VeRLTrainer
from orbiter.train.verl.reward import score
from orbiter.train.verl.tasks import as_tasks


async def examine(
    trainer: ModelTrainer,
    name: str,
    items: Sequence[Any],
    rewards: Sequence[RewardSpec],
) -> Exam:
    """Answer every item greedily, and score the answers with the rewards.

    With an agent that runs, play its episodes. A failed one has no score.

    Raises:
        CallbackError: a reward failed, or too many episodes did.
    """
    if isinstance(trainer, VeRLTrainer) and trainer.running_agent is not None:
        attempts = (await trainer.assess(items)).attempts
        failed = sum(attempt.reward is None for attempt in attempts)
        return Exam(
            name=name,
            scores=[attempt.reward for attempt in attempts],
            outputs=[attempt.output for attempt in attempts],
            note=f"{failed} of {len(attempts)} episodes failed" if failed else "",
        )
    outputs = await trainer.generate(list(items))
    absolute = [reward for reward in rewards if not reward.relative]
    worth = await score(outputs, list(items), absolute)
    missing = worth.total.count(None)
    if missing and not worth.left_out:
        raise DataError(f"{missing} of {len(items)} answers got no reward")
    note = f"{missing} of {len(items)} answers have no verdict of the judge" if missing else ""
    return Exam(name=name, scores=worth.total, outputs=outputs, note=note)


def keep_exams(folder: Path, items: Sequence[Any], exams: Sequence[Exam]) -> None:
    """Store the exams where the report finds them."""
    tasks = [Task(prompt=item.state, expected=item.action) for item in as_tasks(items).items]
    keep_story(folder, Story(measure="reward", tasks=tasks, exams=exams))


def kept_exam(folder: Path, name: str) -> Exam | None:
    """Return an exam stored by an earlier process, or None."""
    return next((exam for exam in read_story(folder).exams if exam.name == name), None)


def interval(exam: Exam) -> Interval:
    """Return the exam's mean score with its interval."""
    return mean_interval(exam.known)


def gain(before: Exam, after: Exam) -> Interval:
    """Return the paired improvement from the first exam to the second, item by item."""
    return paired_difference(*paired(after, before))
