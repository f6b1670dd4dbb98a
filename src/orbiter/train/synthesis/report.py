"""Records the rows that a curation function left out, and why; pass it as `report=`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from orbiter.train.synthesis.records import Row


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row that is not in the result."""

    index: int
    """The index of the row in the input."""
    row: Row
    """The row itself, unchanged."""
    reason: str
    """One word to count by, such as "score" or "duplicate"."""
    detail: str
    """One sentence for the user."""
    witness: int | None = None
    """For a duplicate: the index of the kept row that it is similar to."""
    similarity: float | None = None
    """For a duplicate: the Jaccard similarity to the witness, in [0, 1]."""


@dataclass(slots=True)
class CurationReport:
    """Filled by the function to which it is passed; a second call adds further rows."""

    dropped: list[Dropped] = field(default_factory=list[Dropped])
    """Every row left out, in the data's order."""

    @property
    def by_reason(self) -> dict[str, int]:
        """The number of rows dropped for each reason."""
        return dict(Counter(drop.reason for drop in self.dropped))
