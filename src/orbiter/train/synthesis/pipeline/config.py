"""What a synthesis run is to reach, and when it gives up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from orbiter.train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisConfig:
    """What a synthesis run is to reach, and when it gives up."""

    target_size: int = 100
    """How many new items are wanted; the run ends with exactly so many, or says why not."""
    min_score: float | None = None
    """The least score of an accepted item, inclusive; None judges nothing."""
    dedup_threshold: float | None = 0.9
    """Word-3-gram Jaccard similarity from which an item repeats an accepted one or a seed, in
    (0, 1]; None keeps repetitions."""
    unscored: Literal["keep", "drop", "raise"] = "keep"
    """What becomes of a candidate that has no score where `min_score` is set."""
    max_candidates: int | None = None
    """The run stops when so many candidates were made; None: ten times `target_size`."""
    max_cost: float | None = None
    """The run asks no more when so much was spent, in whatever unit the steps and the scorer
    report; None: no limit."""
    patience: int = 3
    """Rounds in a row without an accepted item, each asking for more, before it is given up."""
    batch_size: int = 16
    """Items asked for in one call: what a killed run may have to ask for again."""
    concurrency: int = 4
    """Calls at once, of steps and of the scorer each; changes the time, not the result."""
    on_error: Literal["raise", "drop"] = "raise"
    """When a step or the scorer raises: end the run, or go on without what was asked for."""
    seed: int = 0
    """Where every step's random numbers come from."""

    def __post_init__(self) -> None:
        for name in ("target_size", "patience", "batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ConfigError(f"min_score must be finite or None, got {self.min_score}")
        if self.dedup_threshold is not None and not 0 < self.dedup_threshold <= 1:
            raise ConfigError(f"dedup_threshold must lie in (0, 1], got {self.dedup_threshold}")
        if self.unscored not in {"keep", "drop", "raise"}:
            raise ConfigError(f"unscored must be 'keep', 'drop' or 'raise', got {self.unscored!r}")
        if self.on_error not in {"raise", "drop"}:
            raise ConfigError(f"on_error must be 'raise' or 'drop', got {self.on_error!r}")
        if self.max_candidates is not None and self.max_candidates < self.target_size:
            raise ConfigError(
                f"max_candidates must be at least target_size ({self.target_size}), got "
                f"{self.max_candidates}"
            )
        if self.max_cost is not None and not self.max_cost > 0:
            raise ConfigError(f"max_cost must be above 0, got {self.max_cost}")

    @property
    def most_candidates(self) -> int:
        """How many candidates are made at most."""
        return 10 * self.target_size if self.max_candidates is None else self.max_candidates
