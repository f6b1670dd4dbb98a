"""Facts about a run that its own files do not contain: exams, and what happened to the data.

The code that knows them stores them in the run's folder with `keep_story`; the page shows them.

    story.json      a title, the tasks with each model's answers and scores, and the data ledger
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from orbiter.train.errors import ConfigError, DataError, StorageError
from orbiter.train.storage import write_file

STORY_FILE = "story.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task that every model was given."""

    prompt: str
    name: str = ""
    expected: str = ""
    """A correct answer, if there is one to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """The answers of one model to all tasks."""

    name: str
    scores: Sequence[float | None]
    """The score of each answer, in task order; None where it could not be judged."""
    outputs: Sequence[str] = ()
    """The answers; empty if they were not kept."""
    note: str = ""
    """A short addition to the name."""

    @property
    def known(self) -> list[float]:
        """The scores of the answers that could be judged."""
        return [score for score in self.scores if score is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStep:
    """One step of data preparation, and what it dropped."""

    name: str
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of dropped items by reason."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What the page shows in addition to the run's own files."""

    title: str = ""
    summary: str = ""
    """One or two sentences below the title."""
    measure: str = "score"
    """What an exam's score measures, such as "right calls"."""
    percent: bool = False
    """Whether scores lie in [0, 1] and are shown in per cent."""
    against: str = ""
    """The exam that all others are compared with, in pairs; the first one by default."""
    tasks: Sequence[Task] = ()
    exams: Sequence[Exam] = ()
    ledger: Sequence[LedgerStep] = ()
    facts: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    """Anything else to show, one table row each."""

    def __post_init__(self) -> None:
        names = [exam.name for exam in self.exams]
        if len(set(names)) < len(names):
            raise ConfigError(f"each exam needs a different name, got {names}")
        if self.against and self.against not in names:
            raise ConfigError(f"against={self.against!r} is not one of the exams {names}")
        sizes = {len(exam.scores) for exam in self.exams} | (
            {len(self.tasks)} if self.tasks else set()
        )
        # Otherwise answers would be shown with the questions of other tasks.
        if len(sizes) > 1 or 0 in sizes:
            raise DataError(
                f"every exam needs one score for each task, got {len(self.tasks)} tasks and "
                f"{[len(exam.scores) for exam in self.exams]} scores"
            )
        for exam in self.exams:
            if exam.outputs and len(exam.outputs) != len(exam.scores):
                raise DataError(
                    f"exam {exam.name!r} has {len(exam.outputs)} outputs for "
                    f"{len(exam.scores)} scores"
                )


class Paired(NamedTuple):
    """The scores of two exams on the tasks that have one in both."""

    first: list[float]
    second: list[float]


def paired(first: Exam, second: Exam) -> Paired:
    """Return the scores of two exams for a paired comparison."""
    pairs = [
        (a, b)
        for a, b in zip(first.scores, second.scores, strict=True)
        if a is not None and b is not None
    ]
    return Paired([a for a, _ in pairs], [b for _, b in pairs])


def keep_story(folder: str | os.PathLike[str], story: Story) -> Path:
    """Write the story to a run's folder, replacing an earlier one; return its path."""
    path = Path(folder) / STORY_FILE
    write_file(path, msgspec.json.encode(story))
    return path


def read_story(folder: Path) -> Story:
    """Return the story in a run's folder, or an empty one.

    Raises:
        StorageError: the file exists but is not a story.
    """
    path = folder / STORY_FILE
    if not path.is_file():
        return Story()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Story)
    except (msgspec.DecodeError, ValueError) as error:
        raise StorageError(f"{path} is not the story of a run: {error}") from error
