"""Show progress: the metrics of a training's step as one line, and the tokens of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from orbiter.train.progress import LOG_SECONDS, PIECE_SEPARATOR, make_progress

Report = Callable[[int, int], None]
"""Called with the number of tokens done and the number of answers finished."""

SHOWN = {
    "reward": "reward {:.3f}",
    "loss": "loss {:.4f}",
    "kl": "KL {:.4f}",
    "divergence": "divergence {:.4f}",
    "grad_norm": "grad {:.2f}",
    "clip_fraction": "clip {:.2f}",
    "entropy": "H {:.2f}",
    "length": "length {:.0f}",
    "eval/reward": "eval {:.3f}",
    "eval/loss": "eval loss {:.4f}",
    "eval/divergence": "eval divergence {:.4f}",
    "tokens_per_second": "{:.0f} tok/s",
}
"""Format of each metric shown, in this order; metrics that were not measured are skipped."""


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
    with make_progress("answering", total, shown=shown, every_seconds=LOG_SECONDS) as progress:
        yield lambda tokens, finished: progress.update(tokens, f"{finished} of {answers} answers")


def shifted(report: Report | None, answers: int, max_tokens: int) -> Report:
    """Return the report of a part that follows `answers` others; without a report it is silent."""

    def report_part(tokens: int, finished: int) -> None:
        if report is not None:
            report(answers * max_tokens + tokens, answers + finished)

    return report_part
