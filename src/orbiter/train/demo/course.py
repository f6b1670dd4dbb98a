"""A course in two parts: imitation of a few right episodes, then training by reward, with exams."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

from orbiter.train.errors import TrainError
from orbiter.train.evaluation import Interval, mean_interval, paired_difference
from orbiter.train.report import Exam, Story, Task, keep_story, write_report
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import VeRLConfig, VeRLTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The content and the duration of a course."""

    title: str
    summary: str
    model: str
    environment: Callable[[], object]
    lessons: Sequence[TrajectoryItem]
    """Every turn of right episodes, to imitate."""
    tasks: Sequence[Mapping[str, Any]]
    """The tasks for training by reward."""
    held_out: Sequence[Mapping[str, Any]]
    """The exam's tasks, which are in no other part."""
    shown: Sequence[Task]
    """The exam's tasks, in the form that the report shows."""
    attempts: int
    """Episodes of each task in an exam."""
    minutes: float
    """Time for learning by doing."""
    sft: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the imitation."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of learning by doing."""


class ExamResult(NamedTuple):
    """An exam: the mean reward of each task, and an answer to show."""

    scores: list[float]
    outputs: list[str]


async def take(course: Course, folder: Path, seed: int) -> Interval:
    """Imitate, take an exam, learn by doing, take it again; return the paired gain.

    Raises:
        TrainError: something that the run needs is missing, or it cannot learn.
    """
    began = perf_counter()
    say(f"imitating {len({item.task_id for item in course.lessons})} right episodes")
    sft = SFTTrainer(
        SFTConfig(model=course.model, output_dir=folder / "sft", seed=seed, **course.sft)
    )
    await sft.train(course.lessons)
    start = await sft.save(folder / "sft" / "model")
    trainer = VeRLTrainer(_config(course, start, folder, seed), environment=course.environment)
    say(f"computes in {(await trainer.policy()).computes}")
    # After the imitation, so that the gain is that of learning by doing alone.
    before = await examine(trainer, course)
    say(f"before  reward {mean_interval(before.scores)}")
    say(f"learning by doing, for {course.minutes:g} minutes")
    await trainer.train(course.tasks)
    after = await examine(trainer, course)
    gain = paired_difference(after.scores, before.scores)
    _keep(folder, course, before, after)
    sure = "" if gain.low > 0 else ", which may be chance"
    say(f"after   reward {mean_interval(after.scores)}")
    say(f"gain    {gain.mean:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}], task by task{sure}")
    minutes = (perf_counter() - began) / 60
    say(f"took    {minutes:.1f} minutes, {len(trainer.history)} steps")
    say(f"report  {write_report(folder)}")
    return gain


async def examine(trainer: VeRLTrainer, course: Course) -> ExamResult:
    """Play the held-out tasks, each as often as `course.attempts` says, with the same seeds."""
    played = (await trainer.assess(course.held_out, samples=course.attempts)).attempts
    groups = [played[i : i + course.attempts] for i in range(0, len(played), course.attempts)]
    return ExamResult(
        [fmean(a.reward or 0.0 for a in group) for group in groups],
        [group[0].output for group in groups],
    )


def _config(course: Course, start: Path, folder: Path, seed: int) -> VeRLConfig:
    settings: dict[str, Any] = {
        "epochs": 100,
        "max_seconds": 60 * course.minutes,
        "loss_aggregation": "episode",
        "max_flat_steps": 200,
    }
    settings |= course.settings
    return VeRLConfig(model=str(start), output_dir=folder / "by-doing", seed=seed, **settings)


def _keep(folder: Path, course: Course, before: ExamResult, after: ExamResult) -> None:
    """Store the files that the report and scripts read."""
    exams = [
        Exam(name="before", note="after imitation", scores=before.scores, outputs=before.outputs),
        Exam(name="after", note="learned by doing", scores=after.scores, outputs=after.outputs),
    ]
    story = Story(
        title=course.title,
        summary=course.summary,
        measure="reward",
        tasks=list(course.shown),
        exams=exams,
    )
    keep_story(folder, story)
    gain = paired_difference(after.scores, before.scores)
    result = {
        "before": mean_interval(before.scores)._asdict(),
        "after": mean_interval(after.scores)._asdict(),
        "gain": gain._asdict(),
    }
    with atomic_write(folder / "result.json") as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")


def command_line(module: str, about: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every course has."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--seed", type=int, default=0, help="of tasks, batches and samples")
    parser.add_argument("--minutes", type=float, help="time for learning by doing")
    parser.add_argument("--out", type=Path, help="folder of the run")
    return parser


def carry_out(run: Callable[[Path], Awaitable[object]], out: Path | None, name: str) -> int:
    """Run a course in its folder; return 0, or 1 if something that it needs is missing."""
    folder = out or Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"

    async def go() -> None:
        await run(folder)

    try:
        asyncio.run(go())
    except TrainError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)  # noqa: T201 - a script's output
