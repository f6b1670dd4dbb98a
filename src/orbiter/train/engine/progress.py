"""A run on the terminal: where it stands, how it does, when it will be over.

Left out: the record. What is shown here stands in the run's folder too (`runlog.py`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

log = logging.getLogger(__name__)

SHOWN = {
    "reward": "reward {:.3f}",
    "loss": "loss {:.4f}",
    "kl": "KL {:.4f}",
    "grad_norm": "grad {:.2f}",
    "clip_fraction": "clip {:.2f}",
    "entropy": "H {:.2f}",
    "length": "length {:.0f}",
    "eval/reward": "eval {:.3f}",
    "eval/loss": "eval loss {:.4f}",
    "tokens_per_second": "{:.0f} tok/s",
}
"""What is shown of a step's metrics, in this order, where it was measured."""


class Progress(Protocol):
    """Something that is told about every step."""

    def say(self, line: str) -> None:
        """Show a line of its own."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show that `done` steps are over, and how the last one went."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def make_progress(title: str, total: int, *, done: int = 0, wanted: bool = True) -> Progress:
    """Return a bar on standard error, or what only logs where that is no terminal."""
    if wanted and sys.stderr.isatty():
        return Bar(title, total, done)
    return Quiet(total)


def line_of(metrics: Mapping[str, float]) -> str:
    """Say a step's metrics in one line."""
    shown = [form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics]
    return "  ".join(shown)


class Quiet:
    """Nothing on the terminal; a line a step in the log, at level INFO."""

    def __init__(self, total: int) -> None:
        self.total = total

    def say(self, line: str) -> None:
        """Log the line."""
        log.info("%s", line)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Log the step."""
        log.info("step %d/%d  %s", done, self.total, line_of(metrics))

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Bar(Quiet):
    """A bar with the metrics of the last step and the time that is left."""

    def __init__(self, title: str, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().__init__(total)
        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
        )
        self._task = self._rich.add_task(title, total=total, completed=done, metrics="")

    def say(self, line: str) -> None:
        """Print the line above the bar."""
        super().say(line)
        self._rich.console.print(line, markup=False, highlight=False)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        super().step(done, metrics)
        self._rich.update(self._task, completed=done, metrics=line_of(metrics))

    def __enter__(self) -> Bar:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()
