"""What a synthesis run ended with, every candidate accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from orbiter.train.trajectory import TrajectoryItem

StopReason = Literal["target", "exhausted", "max_candidates", "budget", "cancelled"]
"""Why a run ended: the target was reached; no new items come any more; the limit on candidates or
on cost was reached; it was stopped."""

RejectReason = Literal["invalid", "failed", "unscored", "score", "duplicate_of_seed", "duplicate"]
"""Why a candidate was not taken: it is no usable item; the scorer raised; it has no score; the
score is too low; it repeats a seed; it repeats an accepted item."""


class Rejection(NamedTuple):
    """One candidate that was not taken."""

    item: TrajectoryItem | None
    """The candidate; None where it was no item at all."""
    reason: RejectReason
    detail: str
    """One sentence for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisResult:
    """What a run ended with: `generated_count == len(items) + filtered_count + trimmed_count`."""

    items: Sequence[TrajectoryItem]
    """The accepted items, in candidate order; a seed is never among them."""
    stop_reason: StopReason
    generated_count: int
    """Every candidate made, those of an earlier, killed process included."""
    trimmed_count: int
    """Candidates made before the run knew that it needed no more; not judged."""
    rejections: Sequence[Rejection]
    """Every rejected candidate, in order, with its reason."""
    unscored_count: int
    """Candidates that passed `min_score` without having a score."""
    seed_count: int
    """Seeds that were used."""
    unused_seed_count: int
    """Seeds below `min_score`, which no step saw."""
    rounds: int
    cost: float
    """What steps and scorer say they have spent, in their unit."""
    made_by_step: Mapping[str, int]
    """Items that each step made; those of the last step are the candidates."""
    failures: Sequence[str]
    """What raised under `on_error="drop"`."""

    @property
    def filtered_count(self) -> int:
        """Every candidate rejected."""
        return len(self.rejections)

    @property
    def cost_per_item(self) -> float | None:
        """What an accepted item has cost, rejected candidates included; None without any."""
        return self.cost / len(self.items) if self.items else None

    @property
    def rejected(self) -> dict[RejectReason, int]:
        """How many candidates each reason took."""
        return dict(Counter(rejection.reason for rejection in self.rejections))

    @property
    def acceptance(self) -> float:
        """The accepted share of the candidates that were judged; 0 where none was."""
        judged = len(self.items) + self.filtered_count
        return len(self.items) / judged if judged else 0.0
