"""The goal of a synthesis run, and the limits at which it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orbiter.train.checks import Number, OneOf, OrNone, WholeNumber, check_fields, setting
from orbiter.train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisConfig:
    """The goal of a synthesis run, and the limits at which it stops."""

    target_size: int = setting(
        100,
        "New items wanted; the run ends with exactly this many, or says why not.",
        WholeNumber(at_least=1),
    )
    min_score: float | None = setting(
        None, "Lowest score of an accepted item; none judges nothing.", OrNone(Number())
    )
    dedup_threshold: float | None = setting(
        0.9,
        "Word-3-gram Jaccard similarity from which an item repeats an accepted one or a seed; none "
        "keeps repetitions.",
        OrNone(Number(above=0, at_most=1)),
    )
    unscored: Literal["keep", "drop", "raise"] | None = setting(
        None,
        "What happens to a candidate without a score if there is a scorer or min_score; none drops "
        "it, or keeps it with a warning if there is no scorer.",
        OrNone(OneOf(("keep", "drop", "raise"))),
    )
    max_candidates: int | None = setting(
        None,
        "The run stops after this many candidates; none means ten times target_size.",
        OrNone(WholeNumber(at_least=1)),
    )
    max_cost: float | None = setting(
        None,
        "The run starts no more calls once this much is spent, in the unit that the steps and the "
        "scorer report; none sets no limit.",
        OrNone(Number(above=0)),
    )
    patience: int = setting(
        3,
        "The run gives up after this many rounds in a row without an accepted item, each of which "
        "asks for more.",
        WholeNumber(at_least=1),
    )
    batch_size: int = setting(
        16,
        "Items in one call of a step; a killed run may have to ask for these again.",
        WholeNumber(at_least=1),
    )
    concurrency: int = setting(
        4,
        "Calls at once, of the steps and of the scorer each; changes the time, not the result.",
        WholeNumber(at_least=1),
    )
    on_error: Literal["raise", "drop"] = setting(
        "raise",
        "When a step or the scorer fails: end the run, or continue without the items that failed.",
        OneOf(("raise", "drop")),
    )
    seed: int = setting(0, "Seed of every step's random numbers.", WholeNumber())

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_candidates is not None and self.max_candidates < self.target_size:
            raise ConfigError(
                f"max_candidates must be at least target_size ({self.target_size}), got "
                f"{self.max_candidates}"
            )

    @property
    def most_candidates(self) -> int:
        """Maximum number of candidates."""
        return 10 * self.target_size if self.max_candidates is None else self.max_candidates
