"""Show how far long work has come: a bar on a terminal, lines in the log anywhere else.

`make_progress` is for work in known units, `working` for anything else that may take seconds.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
    from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""A good pause between two log lines about small units, such as items or episodes."""
FIRST_SECONDS = 1.0
"""`working` shows nothing on a terminal before this time, so that quick work leaves no trace."""
PIECE_SEPARATOR = "  "
"""Separates the facts of a detail text; a narrow terminal drops whole facts from the end."""


def is_plain(stream: TextIO) -> bool:
    """Return whether a stream takes plain lines only: a pipe, `NO_COLOR`, or a dumb terminal."""
    is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return bool(os.environ.get("NO_COLOR")) or is_dumb or not stream.isatty()


class Progress:
    """Progress that only the log shows: one line for an update, at level INFO.

    Inside its `with` block a line also appears whenever nothing was logged for `LOG_SECONDS`, so
    that one slow unit does not look like a program that hangs.
    """

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
        self._detail = ""
        self._begin = time.monotonic()
        self._ended = threading.Event()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        log.info("%s", line)

    def update(self, done: int, detail: str = "") -> None:
        """Show that `done` units are finished; `detail` holds facts, two spaces apart."""
        self.done, self._detail = done, detail
        now = time.monotonic()
        if done >= self.total or now - self._logged_at >= self._every_seconds:
            self._logged_at = now
            # At most one line in `every_seconds`, but the last unit always: a log must show that
            # the work ended.
            log.info("%s %d/%d  %s", self.title, done, self.total, detail)

    def __enter__(self) -> Self:
        # Again, since the block may be entered long after the bar was made.
        self._begin = time.monotonic()
        threading.Thread(target=self._log_while_silent, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        self._ended.set()

    def _log_while_silent(self) -> None:
        pause = LOG_SECONDS
        while not self._ended.wait(pause):
            now = time.monotonic()
            silent = now - max(self._logged_at, self._begin)
            # Sleep only until the silence has lasted long enough, measured from the last line.
            pause = LOG_SECONDS - silent
            if pause > 0:
                continue
            pause, self._logged_at = LOG_SECONDS, now
            log.info(
                "%s %d/%d  %.0f s so far  %s",
                self.title, self.done, self.total, now - self._begin, self._detail,
            )  # fmt: skip


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
        # The log gets its lines in any case; a terminal usually hides level INFO.
        super().update(done, detail)
        self._bar.update(self._task, completed=done, detail=detail)

    def __enter__(self) -> Self:
        super().__enter__()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
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
        shown = not is_plain(sys.stderr)
    kind = ProgressBar if shown else Progress
    return kind(title, total, done=done, every_seconds=every_seconds)


@contextmanager
def working(
    title: str, unit: str = "items", *, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show that work of unknown length goes on, for as long as the block runs.

    A terminal gets a moving bar with the time so far once a second has passed; anything else gets
    a line in the log every `LOG_SECONDS`. Quick work shows nothing.

    Args:
        title: What is being done, such as "reading data.jsonl".
        unit: What the yielded function counts.
        shown: False draws no bar; the log gets its lines anyway.

    Yields:
        A function to call with the number of units done so far; calling it is optional and cheap.
    """
    count = _Count()
    ended = threading.Event()
    show = _draw_work if shown and not is_plain(sys.stderr) else _log_work
    thread = threading.Thread(
        target=show, args=(title, unit, count, ended), name="working", daemon=True
    )
    thread.start()
    try:
        yield count.set
    finally:
        ended.set()
        thread.join()


class _Count:
    """A number that one thread sets and another one shows."""

    def __init__(self) -> None:
        self.value = 0

    def set(self, value: int) -> None:
        self.value = value

    def shown(self, unit: str) -> str:
        """Return the number with its unit, or nothing if nothing was counted."""
        return f"{self.value} {unit}" if self.value else ""


def _log_work(title: str, unit: str, count: _Count, ended: threading.Event) -> None:
    begin = time.monotonic()
    while not ended.wait(LOG_SECONDS):
        seconds = time.monotonic() - begin
        log.info("%s: %s", title, ", ".join(filter(None, (count.shown(unit), f"{seconds:.0f} s"))))


def _draw_work(title: str, unit: str, count: _Count, ended: threading.Event) -> None:
    # Importing rich takes longer than most work that is announced here.
    if ended.wait(FIRST_SECONDS):
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    class CountColumn(ProgressColumn):
        """The units done so far."""

        def render(self, task: Task) -> FittingPieces:  # noqa: ARG002 - rich passes the task
            return FittingPieces(count.shown(unit))

    console = Console(stderr=True)
    with RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=max(4, min(20, console.width // 8))),
        TimeElapsedColumn(),
        CountColumn(table_column=Column(ratio=1, no_wrap=True)),
        console=console,
        expand=True,
        # The bar leaves no line behind, since nothing of it is worth reading later.
        transient=True,
        # rich would otherwise replace sys.stdout while the block runs, in every thread.
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        bar.add_task(_shortened(title, console.width // 3), total=None)
        ended.wait()


def _shortened(title: str, width: int) -> str:
    """Return the title, with its middle left out if it is longer than `width` characters."""
    if len(title) <= width:
        return title
    kept = max(2, width - 3)
    return f"{title[: kept - kept // 2]}...{title[-(kept // 2) :]}"


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
