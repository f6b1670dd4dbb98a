"""The result of a synthesis run, with every candidate accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from orbiter.train.trajectory import TrajectoryItem

StopReason = Literal["target", "exhausted", "max_candidates", "budget", "failures", "cancelled"]
"""Why a run ended: the target was reached; no new items came; the limit on candidates or on cost
was reached; only failures came; it was stopped."""

RejectReason = Literal[
    "invalid", "failed", "budget", "unscored", "score", "duplicate_of_seed", "duplicate"
]
"""Why a candidate was not accepted: it is not a usable item; the model, a step or the scorer
failed; the model's budget was spent before it was asked; it has no score; its score is too low; it
repeats a seed; it repeats an accepted item."""


class Rejection(NamedTuple):
    """A candidate that was not accepted."""

    item: TrajectoryItem | None
    """The candidate, or the item it was to be made from; None if there is neither."""
    reason: RejectReason
    detail: str
    """One sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisResult:
    """The result of a run: `generated_count == len(items) + filtered_count + trimmed_count`."""

    items: Sequence[TrajectoryItem]
    """The accepted items, in candidate order; a seed is never among them."""
    stop_reason: StopReason
    stop_cause: str = ""
    """The last error, if the run ended because of failures or of a model's budget."""
    generated_count: int
    """Number of candidates, including those of earlier processes and those that a step failed to
    make."""
    trimmed_count: int
    """Candidates made before the run knew that it needed no more; not judged."""
    rejections: Sequence[Rejection]
    """Every rejected candidate, in order, with its reason."""
    unscored_count: int
    """Candidates accepted without a score although scores were wanted."""
    seed_count: int
    """Seeds that were used."""
    unused_seed_count: int
    """Seeds below `min_score`, which no step saw."""
    rounds: int
    cost: float
    """Total cost that the steps and the scorer reported, in their unit."""
    made_by_step: Mapping[str, int]
    """Number of items that each step returned, including those that it rejected."""
    failures: Sequence[str]
    """The errors under `on_error="drop"`, one for each failed item or batch."""

    @property
    def filtered_count(self) -> int:
        """Number of rejected candidates."""
        return len(self.rejections)

    @property
    def cost_per_item(self) -> float | None:
        """Cost per accepted item, including the rejected candidates; None without items."""
        return self.cost / len(self.items) if self.items else None

    @property
    def rejected(self) -> dict[RejectReason, int]:
        """Number of rejected candidates by reason."""
        return dict(Counter(rejection.reason for rejection in self.rejections))

    @property
    def acceptance(self) -> float:
        """Accepted share of the judged candidates; 0 without any."""
        judged = len(self.items) + self.filtered_count
        return len(self.items) / judged if judged else 0.0
