"""The settings of an evolution, checked when they are made, and the reasons why it stops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from typing import Literal

from orbiter.train.checks import Boolean, shown
from orbiter.train.errors import ConfigError
from orbiter.train.evolution.event import Event


class StopReason(StrEnum):
    """Why a run ended."""

    EPOCHS = "epochs"
    TARGET = "target"
    PATIENCE = "patience"
    EVALUATIONS = "max_evaluations"
    COST = "max_cost"
    TIME = "max_seconds"
    STAGNANT = "stagnant"
    """No new candidate can be made."""
    BUDGET = "budget"
    """The budget of a language model is spent."""
    FAILURES = "failures"
    """Too many evaluations or mutations failed in a row; `stop_cause` has the last reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionConfig:
    """The length, breadth and selection pressure of an evolution's search."""

    epochs: int = 10
    """Rounds of evaluation and selection; every candidate ever made is scored."""
    population_size: int = 20
    """Size of the population."""
    selection_ratio: float = 0.5
    """Share that survives an epoch. In steady mode, 1 / the size of the tournament that picks
    parents."""
    mutation_rate: float = 0.1
    """0: nothing is ever mutated, the population only shrinks. Above 0: mutated children fill the
    population, and the rate reaches the strategy as `context.rate`: how strongly to vary."""
    crossover_rate: float = 0.8
    """Share of children with two parents, where the strategy defines `crossover`."""
    seed: int = 0
    concurrency: int = 16
    """Most calls of `evaluate` and `mutate` at once, together. `PromptEvolution` also runs at most
    this many tasks at once, over all candidates."""
    timeout: float | None = None
    """Seconds that one evaluation may take before it counts as failed."""
    retries: int = 0
    """Further tries of an evaluation after an exception or a timeout; never after a NaN."""
    elite: int = 1
    """The best members ever, which survive even if `select` drops them; `result.best` is always
    kept."""
    cache: bool = True
    """Share one evaluation among equal candidates. False: each member is evaluated itself."""
    replicates: int = 1
    """Evaluations of every candidate; its score is their mean."""
    contenders: int = 0
    """Noisy scores: how many leading members are evaluated once more each epoch; scores are
    pooled."""
    confirm: int = 0
    """Noisy scores: fresh evaluations of the winner at the end; their mean alone is `best_score`.
    The search did not select by them, so the mean is not biased by luck. They are reserved out of
    `max_evaluations` and `max_cost`, and come on top of `max_seconds`."""
    target: float | None = None
    """Stop once the best score reaches it."""
    patience: int | None = None
    """Stop after this many epochs without a gain above `min_delta`."""
    min_delta: float = 0.0
    max_evaluations: int | None = None
    """Never start more evaluations than this."""
    max_cost: float | None = None
    """Stop before the cost reported by the strategy exceeds this."""
    max_seconds: float | None = None
    mode: Literal["generation", "steady"] = "generation"
    """"generation" waits for a whole epoch, and gives the same result at any concurrency. "steady"
    starts a child as soon as a call ends: a slow evaluation delays no other."""
    on_error: Literal["drop", "raise"] = "drop"
    """A failure costs one candidate (or one task) and is counted, or ends the run."""
    run_dir: str | PathLike[str] | None = None
    """Folder of the journal. The same folder resumes the run, even in the middle of an epoch."""
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
        Boolean()("cache", self.cache)
        if not _is_number(self.min_delta) or not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"min_delta must be a number of at least 0, got {self.min_delta!r}")
        if self.target is not None and not (_is_number(self.target) and self.target < math.inf):
            raise ConfigError(f"target must be a number or None, got {self.target!r}")
        self._check_together()

    def _check_together(self) -> None:
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
        raise ConfigError(f"{name} must be a whole number of at least {low}, got {shown(value)}")


def _share(name: str, value: object, *, zero_allowed: bool) -> None:
    if not _is_number(value) or not 0 <= float(value) <= 1 or (value == 0 and not zero_allowed):  # type: ignore[arg-type] # a number by now
        opening = "[" if zero_allowed else "("
        raise ConfigError(f"{name} must be a number in {opening}0, 1], got {shown(value)}")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an int that no float can hold
        return False


def _positive(name: str, value: float | None) -> None:
    if value is None:
        return
    if not _is_number(value) or not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} must be a positive number or None, got {shown(value)}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {shown(value)}")
