"""The results of a run: shown on the page and stored in `result.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from orbiter.train.evaluation import Interval, mean_interval, paired_difference


@dataclass(frozen=True, slots=True)
class DemoExam:
    """The held-out requests, answered greedily by one model."""

    name: str
    replies: list[str]
    """In the order of `DemoOutcome.held_out`."""
    right: list[bool]
    """The leaderboard's verdict on each."""
    seconds: float
    """Wall time of answering."""

    @property
    def accuracy(self) -> Interval:
        """Share of right calls, with its 95 % interval over the requests."""
        return mean_interval(map(float, self.right))

    def gain_over(self, other: DemoExam) -> Interval:
        """Return how much better this model is on the same requests, paired, with 95 %."""
        return paired_difference(map(float, self.right), map(float, other.right))


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out request as the page shows it."""

    id: str
    text: str
    prompt: str
    expected: str
    """One of the right calls."""


@dataclass(slots=True)
class DemoOutcome:
    """A whole run."""

    held_out: list[Question] = field(default_factory=list[Question])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """Numbers of requests, traces and lessons, by name."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Wall time of each stage, and of the GRPO training alone."""
    exams: dict[str, DemoExam] = field(default_factory=dict[str, DemoExam])
    """By name: "before", "sft", "grpo", "further sft"."""
    curves: dict[str, list[tuple[float, float]]] = field(
        default_factory=dict[str, list[tuple[float, float]]]
    )
    """Points (step, value) by name."""
    model: str = ""
    """Folder of the trained model."""
    page: str = ""
    """The report."""
