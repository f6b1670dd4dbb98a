"""Show the progress of a training, with the metrics of the last step, and of answering."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from orbiter.train import progress
from orbiter.train.progress import LOG_SECONDS, PIECE_SEPARATOR

Report = Callable[[int, int], None]
"""Called with the tokens that are done and the answers that are finished."""

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
"""Format of each metric shown, in this order; metrics that were not measured are skipped."""


class Progress:
    """A progress bar over training steps."""

    def __init__(self, bar: progress.Progress) -> None:
        self._bar = bar

    def say(self, line: str) -> None:
        """Print a line that stays above the bar."""
        self._bar.say(line)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show that `done` steps are finished, and the metrics of the last one."""
        self._bar.update(done, line_of(metrics))

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, trace)


def make_progress(title: str, total: int, *, done: int = 0, wanted: bool = True) -> Progress:
    """Return a bar on standard error if it is a terminal and `wanted` is true; else only log."""
    shown = None if wanted else False
    return Progress(progress.make_progress(title, total, done=done, shown=shown))


def line_of(metrics: Mapping[str, float]) -> str:
    """Format a step's metrics as one line."""
    shown = [form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics]
    return PIECE_SEPARATOR.join(shown)


@contextmanager
def answering(answers: int, max_tokens: int, *, wanted: bool = True) -> Iterator[Report]:
    """Show the progress of `answers` answers of up to `max_tokens` tokens each.

    An answer that ends early counts with all its tokens, so that the bar reaches its end.
    """
    shown = None if wanted else False
    total = answers * max_tokens
    with progress.make_progress(
        "answering", total, shown=shown, every_seconds=LOG_SECONDS
    ) as progress_bar:
        yield lambda tokens, finished: progress_bar.update(
            tokens, f"{finished} of {answers} answers"
        )


def shifted(report: Report | None, answers: int, max_tokens: int) -> Report:
    """Return the report of a part that follows `answers` others; without a report it is silent."""

    def report_part(tokens: int, finished: int) -> None:
        if report is not None:
            report(answers * max_tokens + tokens, answers + finished)

    return report_part
