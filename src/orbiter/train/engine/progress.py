"""Write the metrics of a training's step as one line, for the progress bar and the log."""

from __future__ import annotations

from collections.abc import Mapping

from orbiter.train.progress import PIECE_SEPARATOR

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


def line_of(metrics: Mapping[str, float]) -> str:
    """Format a step's metrics as one line."""
    shown = [form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics]
    return PIECE_SEPARATOR.join(shown)
