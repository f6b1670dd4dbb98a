"""What every trainer needs to know, and the checks of single settings that other configs share.

Left out: models, devices and algorithms. Their settings stand with the trainers that know them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from orbiter.train.errors import ConfigError
from orbiter.train.evaluation.interval import is_finite_number


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What every trainer needs to know. A wrong value is refused here, by field and value.

    A subclass with `slots=True` that has a `__post_init__` of its own calls
    `TrainConfig.__post_init__(self)`: `super()` without arguments does not work there.
    """

    epochs: int = 1
    """Times the training goes through the data."""
    batch_size: int = 8
    """Items an update learns from."""
    learning_rate: float = 1e-5
    """Step size at its highest, after the warm-up."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises from 0."""
    eval_every: int | None = None
    """Updates between two evaluations during training; None: none before the end."""
    seed: int = 0
    """Where every random act starts from."""
    output_dir: str | os.PathLike[str] | None = None
    """Folder for the run's log and the trained weights; None: nothing is written."""

    def __post_init__(self) -> None:
        whole("epochs", self.epochs, at_least=1)
        whole("batch_size", self.batch_size, at_least=1)
        number("learning_rate", self.learning_rate, above=0)
        whole("warmup_steps", self.warmup_steps, at_least=0)
        if self.eval_every is not None:
            whole("eval_every", self.eval_every, at_least=1)
        whole("seed", self.seed, at_least=0)
        if self.output_dir is not None and (
            not isinstance(self.output_dir, str | os.PathLike) or not os.fspath(self.output_dir)
        ):
            raise ConfigError(f"output_dir must name a folder, got {self.output_dir!r}")


def whole(name: str, value: object, *, at_least: int) -> None:
    """Refuse a setting that is no int (bool is none) or lies below `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if value < at_least:
        raise ConfigError(f"{name} must be at least {at_least}, got {value!r}")


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    """Refuse a setting that is no finite number (bool is none) or lies outside its limits."""
    if isinstance(value, bool) or not is_finite_number(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    if not value > above:
        raise ConfigError(f"{name} must be above {above:g}, got {value!r}")
    if not at_least <= value <= at_most:
        limit = f"at least {at_least:g}" if value < at_least else f"at most {at_most:g}"
        raise ConfigError(f"{name} must be {limit}, got {value!r}")
