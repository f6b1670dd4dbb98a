"""Print the run's progress and results to the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.table import Table

from orbiter.train.demo.outcome import DemoExam, DemoOutcome
from orbiter.train.demo.plan import DemoPlan, Estimate

STAGES = ("capture", "curate", "sft", "grpo", "further sft")


class Account:
    """Prints each stage and its results, and records how long each took."""

    def __init__(self, outcome: DemoOutcome, console: Console | None = None) -> None:
        """Write to `console`, or to standard output."""
        self.outcome = outcome
        self.console = console or Console(highlight=False)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage, and print at its end how long it took."""
        self.console.print(f"[bold]{name}[/bold] {what}")
        with self.timed(name):
            yield
        self.console.print(f"  [dim]{self.outcome.seconds[name]:.0f} s[/dim]")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of `name`, even if it is interrupted."""
        began = perf_counter()
        try:
            yield
        finally:
            seconds = self.outcome.seconds
            seconds[name] = seconds.get(name, 0.0) + perf_counter() - began

    def expect(self, expected: Estimate, plan: DemoPlan) -> None:
        """Print how long the run will take on this machine."""
        self.console.print(
            f"about {expected.minutes:.0f} minutes on this machine, with {expected.steps} of at "
            f"most {plan.grpo_steps} GRPO steps (--minutes and --steps change that)"
        )

    def skipped(self, stage: str) -> None:
        """Print that a stage was finished by an earlier, interrupted run."""
        self.console.print(f"[bold]{stage}[/bold] [dim]finished before the interruption[/dim]")
        if stage in self.outcome.exams:
            self.exam(self.outcome.exams[stage])

    def say(self, line: str) -> None:
        """Print one fact about the current stage."""
        self.console.print(f"  {line}", markup=False)

    def exam(self, exam: DemoExam) -> None:
        """Print the result of an exam."""
        self.say(f"{percent(exam)} of {len(exam.right)} held-out requests right")

    def summary(self) -> None:
        """Print the result, and where the page and the model are."""
        exams = self.outcome.exams
        table = Table("model", "right calls", "against SFT, paired", title="Held-out requests")
        for exam in exams.values():
            gain = "" if exam.name in ("before", "sft") else gain_text(exam, exams["sft"])
            table.add_row(exam.name, percent(exam), gain)
        self.console.print(table)
        total = sum(self.outcome.seconds.get(stage, 0.0) for stage in STAGES)
        self.console.print(f"{total:.0f} s in all. Report: {self.outcome.page}")
        self.console.print(f"Model: {self.outcome.model}", soft_wrap=True)


def percent(exam: DemoExam) -> str:
    """Return the accuracy with its interval, such as "48.0 % [41.0, 55.0]"."""
    mean, low, high, _ = exam.accuracy
    return f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def gain_text(exam: DemoExam, other: DemoExam) -> str:
    """Return the paired difference in points, such as "+6.0 [+1.5, +10.5]"."""
    mean, low, high, _ = exam.gain_over(other)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
