"""Show how far long work has come: a bar on a terminal, lines in the log anywhere else."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
    from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""A good pause between two log lines about small units, such as items or episodes."""
PIECE_SEPARATOR = "  "
"""Separates the facts of a detail text; a narrow terminal drops whole facts from the end."""


class Progress:
    """Progress that only the log shows: one line for an update, at level INFO."""

    def __init__(
        self, title: str, total: int, *, done: int = 0, every_seconds: float = 0.0
    ) -> None:
        """Prepare the log lines.

        Args:
            title: What is being done, in a word or two.
            total: Number of units of work in all.
            done: Units that were done earlier, for instance before a resume.
            every_seconds: Log at most one line in this time; the last unit is always logged.
        """
        self.title, self.total, self.done = title, total, done
        self._every_seconds = every_seconds
        self._logged_at = -float("inf")

    def say(self, line: str) -> None:
        """Show a line that stays."""
        log.info("%s", line)

    def update(self, done: int, detail: str = "") -> None:
        """Show that `done` units are finished; `detail` holds facts, two spaces apart."""
        self.done = done
        now = time.monotonic()
        if done >= self.total or now - self._logged_at >= self._every_seconds:
            self._logged_at = now
            log.info("%s %d/%d  %s", self.title, done, self.total, detail)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""


class ProgressBar(Progress):
    """A bar on standard error, with the time left and as many facts as the width allows."""

    def __init__(
        self, title: str, total: int, *, done: int = 0, every_seconds: float = 0.0
    ) -> None:
        """Prepare the bar; it is drawn once the block is entered."""
        super().__init__(title, total, done=done, every_seconds=every_seconds)
        self._bar = _rich_bar()
        self._task = self._bar.add_task(title, total=total, completed=done, detail="")

    def say(self, line: str) -> None:
        """Print the line above the bar."""
        super().say(line)
        self._bar.console.print(line, markup=False, highlight=False)

    def update(self, done: int, detail: str = "") -> None:
        """Move the bar."""
        super().update(done, detail)
        self._bar.update(self._task, completed=done, detail=detail)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def make_progress(
    title: str,
    total: int,
    *,
    done: int = 0,
    shown: bool | None = None,
    every_seconds: float = 0.0,
) -> Progress:
    """Return a bar if standard error is a terminal that takes one, else what only logs.

    `shown` True or False decides it instead. `NO_COLOR` and `TERM=dumb` ask for plain lines.
    """
    if shown is None:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        shown = sys.stderr.isatty() and not plain
    kind = ProgressBar if shown else Progress
    return kind(title, total, done=done, every_seconds=every_seconds)


def _rich_bar() -> RichProgress:
    """Make the bar: title, bar, count and time keep their width, the facts take what is left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    class DetailColumn(ProgressColumn):
        """The facts of the last update."""

        def render(self, task: Task) -> FittingPieces:
            return FittingPieces(task.fields["detail"])

    console = Console(stderr=True)
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=max(4, min(20, console.width // 8))),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        DetailColumn(table_column=Column(ratio=1, no_wrap=True)),
        console=console,
        expand=True,
    )


class FittingPieces:
    """A line that drops whole facts from its end until it fits the width it is given."""

    def __init__(self, text: str) -> None:
        """Split the text where two spaces are."""
        self.pieces = [piece for piece in text.split(PIECE_SEPARATOR) if piece]

    def fit(self, width: int) -> str:
        """Return as many pieces as fit into `width` characters."""
        line = ""
        for piece in self.pieces:
            longer = f"{line}{PIECE_SEPARATOR}{piece}" if line else piece
            if len(longer) > width:
                break
            line = longer
        return line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what fits."""
        from rich.text import Text

        yield Text(self.fit(options.max_width), no_wrap=True, end="")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Ask for room for every piece, and get along with none."""
        from rich.measure import Measurement

        return Measurement(0, len(PIECE_SEPARATOR.join(self.pieces)))
