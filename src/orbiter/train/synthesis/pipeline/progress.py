"""How far a run is, on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from orbiter.train.synthesis.pipeline.run import Run

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress:
    """A bar on stderr: accepted of wanted, made, rejected. Shows nothing where nobody looks."""

    def __init__(self, target: int, *, shown: bool | None) -> None:
        """Show it if `shown`, or, where that is None, if stderr is a terminal."""
        self._target = target
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._shown = sys.stderr.isatty() if shown is None else shown

    def __enter__(self) -> Progress:
        if self._shown:
            self._bar, self._task = _bar(self._target)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, run: Run) -> None:
        """Show how far `run` is."""
        if self._bar is not None and self._task is not None:
            told = f"{run.generated} made, {len(run.rejections)} rejected"
            self._bar.update(self._task, completed=len(run.accepted), told=told)


def _bar(target: int) -> tuple[RichProgress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("accepted"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    return bar, bar.add_task("synthesis", total=target, told="")
