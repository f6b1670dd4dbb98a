"""The base class of judges: what they score, what they return, and their calls of a model."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from orbiter.train.chat.message import Message
from orbiter.train.errors import ConfigError
from orbiter.train.evaluation.interval import Interval
from orbiter.train.evaluation.judgement import Judgement
from orbiter.train.llm.chat import ChatModel, name_of
from orbiter.train.llm.metered import MeteredModel, Spent


class Attempt(NamedTuple):
    """One attempt at a task, as a judge sees it."""

    task: str
    """The task as text: an item's state."""
    answer: str
    """The answer, or what an agent returned."""
    messages: Sequence[Message] = ()
    """The conversation of an episode, from its first message on; empty for a single answer."""


class Ruling(NamedTuple):
    """A judge's verdict on one attempt."""

    score: float | None
    """In [0, 1]; None without a verdict; `cause` says why."""
    reason: str = ""
    """The judge's reason, or what was wrong with its answers."""
    scores: Sequence[float] = ()
    """Every usable vote."""
    agreement: float | None = None
    """1 minus the mean difference between two votes; None with fewer than two."""
    cost: float = 0.0
    cause: str = ""
    """Why there is no score: "unreadable", or for a group "alone" or "identical"."""
    place: float | None = None
    """For a group, where the judge saw this attempt: 0 first, 1 last, the mean over the votes."""


class Calibrated(Protocol):
    """What a calibration can do; see `judging/calibration.py`."""

    def corrected(self, scores: Sequence[float], *, confidence: float = 0.95) -> Interval:
        """Return the judge's scores as a corrected rate or mean."""


class BaseJudge(ABC):
    """Scores attempts by a rubric with a language model; usable as `RewardSpec(name, fn=judge)`."""

    relative: ClassVar[bool] = False
    """Whether the attempts at a task are scored together, by comparison."""

    def __init__(
        self,
        model: ChatModel,
        rubric: str,
        *,
        votes: int = 1,
        max_calls: int | None = None,
        max_cost: float | None = None,
    ) -> None:
        """Store the settings; see `MeteredModel` for the two limits.

        Raises:
            ConfigError: the rubric is empty, or a number is out of its range.
        """
        if not isinstance(rubric, str) or not rubric.strip():
            raise ConfigError("a judge needs a rubric to judge by, got an empty text")
        if votes < 1:
            raise ConfigError(f"votes must be at least 1, got {votes}")
        self.model, self.rubric, self.votes = model, rubric, votes
        self._calls = MeteredModel(model, max_calls=max_calls, max_cost=max_cost)
        self._calibration: Calibrated | None = None

    @abstractmethod
    async def rule_on(self, attempts: Sequence[Attempt]) -> list[Ruling]:
        """Return a ruling on each attempt; a relative judge gets all attempts at one task.

        Raises:
            CallbackError: the model raised.
            BudgetError: a limit of the judge's calls was reached.
        """

    @abstractmethod
    def calls_for(self, attempts: int) -> int:
        """Return how many model calls this many attempts at a task take if all are readable."""

    @property
    def name(self) -> str:
        """Name of the judge in judgements: its kind and its model."""
        return f"{type(self).__name__}({name_of(self.model)})"

    @property
    def calibration(self) -> Calibrated | None:
        """What is known of the judge's errors; None before `calibrate`."""
        return self._calibration

    def use_calibration(self, calibration: Calibrated) -> None:
        """Correct what this judge measures from now on; `calibrate` does that."""
        self._calibration = calibration

    @property
    def max_calls(self) -> int | None:
        """Most calls of the model."""
        return self._calls.max_calls

    @property
    def max_cost(self) -> float | None:
        """Most that the calls may cost."""
        return self._calls.max_cost

    @property
    def spent(self) -> Spent:
        """Calls and cost so far, with those of earlier processes that used the same file."""
        return self._calls.spent

    def keep_in(self, path: str | os.PathLike[str]) -> None:
        """Keep the model's answers in a file, so that no question is paid for twice.

        A trainer does that in its run folder.
        """
        self.close()
        self._calls = self._calls.kept_in(path)

    def close(self) -> None:
        """Close the file of answers."""
        self._calls.close()

    def judgement(self, attempt: Attempt, ruling: Ruling) -> Judgement:
        """Return a ruling as the record that people's labels have too."""
        return Judgement(
            rater=self.name,
            kind="rating",
            value=ruling.score,
            task=attempt.task,
            answers=(attempt.answer,),
            cause="" if ruling.score is not None else ruling.cause or "unreadable",
            note=ruling.reason,
        )
