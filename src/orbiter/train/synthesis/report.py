"""What a curation function left out, and why: an object to hand in as `report=` and read after.

Left out: what was kept; that is the function's answer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from orbiter.train.synthesis.records import Row


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row that is not in the answer."""

    index: int
    """Where it stood in the data handed in."""
    row: Row
    """The row itself, as it was."""
    reason: str
    """One word to count by, such as "score" or "duplicate"."""
    detail: str
    """One sentence for a person."""
    witness: int | None = None
    """For a duplicate: where the kept row stands that it is close to."""
    similarity: float | None = None
    """For a duplicate: the Jaccard similarity to the witness, in [0, 1]."""


@dataclass(slots=True)
class CurationReport:
    """Filled by the function that it is handed to; a second call adds to what is there."""

    dropped: list[Dropped] = field(default_factory=list[Dropped])
    """Every row left out, in the data's order."""

    @property
    def by_reason(self) -> dict[str, int]:
        """How many rows each reason took."""
        return dict(Counter(drop.reason for drop in self.dropped))
