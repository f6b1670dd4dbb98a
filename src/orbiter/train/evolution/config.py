"""The settings of an evolution, checked when they are made, and the words for where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from typing import TYPE_CHECKING, Literal

from orbiter.train.errors import ConfigError

if TYPE_CHECKING:
    from orbiter.train.evolution.event import Event


class EvolutionPhase(StrEnum):
    """Where a pipeline stands."""

    INIT = "init"
    """Made, not started."""
    EVALUATING = "evaluating"
    """Scoring the new candidates."""
    SELECTING = "selecting"
    """Choosing who lives on."""
    MUTATING = "mutating"
    """Making variants for the free places."""
    COMPLETE = "complete"
    """Ended, for whatever reason."""


class StopReason(StrEnum):
    """Why a run ended."""

    EPOCHS = "epochs"
    TARGET = "target"
    PATIENCE = "patience"
    EVALUATIONS = "max_evaluations"
    COST = "max_cost"
    TIME = "max_seconds"
    STAGNANT = "stagnant"
    """No candidate can be made that is not known already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionConfig:
    """How long, how wide and how hard an evolution searches."""

    epochs: int = 10
    """Rounds of evaluate and select; every candidate ever made is scored."""
    population_size: int = 20
    """Candidates alive at once."""
    selection_ratio: float = 0.5
    """Share that survives an epoch; in steady mode, one over the size of a parents' tournament."""
    mutation_rate: float = 0.1
    """0: nothing is ever mutated, the population only shrinks. Above 0: every free place gets a
    mutated child, and the rate is the intensity that reaches the strategy as `context.rate`."""
    crossover_rate: float = 0.8
    """Share of children with two parents, where the strategy defines `crossover`."""
    seed: int = 0
    concurrency: int = 16
    """Calls of `evaluate` and `mutate` under way at once, together."""
    timeout: float | None = None
    """Seconds that one evaluation may take before it counts as failed."""
    retries: int = 0
    """Further tries after an exception or a timeout; never after a NaN."""
    elite: int = 1
    """Best members ever that stay whatever `select` answers; `result.best` is kept in any case."""
    cache: bool = True
    """Share one evaluation among equal candidates. Off: each member pays for its own."""
    replicates: int = 1
    """Evaluations of every candidate; its score is their mean."""
    contenders: int = 0
    """Noisy scores: the leading members evaluated once more each epoch, their scores pooled."""
    confirm: int = 0
    """Noisy scores: fresh evaluations of the winner at the end, whose mean alone is `best_score`.
    The search had no part in them, so no luck is left in it. They are held back from
    `max_evaluations` and `max_cost`, and come on top of `max_seconds`."""
    target: float | None = None
    """Stop once the best score reaches it."""
    patience: int | None = None
    """Stop after so many epochs without a gain above `min_delta`."""
    min_delta: float = 0.0
    max_evaluations: int | None = None
    """Never start more evaluations than this."""
    max_cost: float | None = None
    """Stop before the cost reported by the strategy passes this."""
    max_seconds: float | None = None
    mode: Literal["generation", "steady"] = "generation"
    """"generation" waits for a whole epoch, and gives the same result at any concurrency. "steady"
    starts a child as soon as a place is free: no straggler holds anybody up."""
    on_error: Literal["drop", "raise"] = "drop"
    """A failed evaluation is kept as data with its cause, or ends the run."""
    run_dir: str | PathLike[str] | None = None
    """Folder of the journal; the same folder resumes, in the middle of an epoch too."""
    on_event: Callable[[Event], None] | None = None

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            _whole(name, getattr(self, name), low)
        for name in ("selection_ratio", "mutation_rate", "crossover_rate"):
            _share(name, getattr(self, name), zero_allowed=name != "selection_ratio")
        for name in ("timeout", "max_cost", "max_seconds"):
            _positive(name, getattr(self, name))
        for name in ("patience", "max_evaluations"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _one_of("mode", self.mode, ("generation", "steady"))
        _one_of("on_error", self.on_error, ("drop", "raise"))
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ConfigError(f"min_delta must be a number of at least 0, got {self.min_delta!r}")
        if self.max_evaluations is not None and self.confirm >= self.max_evaluations:
            raise ConfigError(
                f"confirm ({self.confirm}) leaves nothing of max_evaluations "
                f"({self.max_evaluations}) for the search"
            )
        if self.elite > self.population_size:
            raise ConfigError(
                f"elite ({self.elite}) cannot exceed population_size ({self.population_size})"
            )


_LEAST = {
    "epochs": 0,
    "population_size": 1,
    "seed": 0,
    "concurrency": 1,
    "retries": 0,
    "elite": 0,
    "replicates": 1,
    "contenders": 0,
    "confirm": 0,
}


def _whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} must be a whole number of at least {low}, got {value!r}")


def _share(name: str, value: object, *, zero_allowed: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= 1 or (value == 0 and not zero_allowed):  # type: ignore[arg-type] # a number by now
        opening = "[" if zero_allowed else "("
        raise ConfigError(f"{name} must lie in {opening}0, 1], got {value!r}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} must be a positive number or None, got {value!r}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
