"""A space of settings: numbers, whole numbers and choices, drawn, varied and kept in bounds."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from orbiter.train.errors import ConfigError, DataError

Value: TypeAlias = float | int | str | bool
Settings: TypeAlias = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Float:
    """A number between `low` and `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Factors matter, not differences: a learning rate. Needs low > 0."""

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, log=self.log)

    def at(self, share: float) -> float:
        """Return the number that lies so far from low to high; beyond 0 and 1 it is clipped."""
        low, high = _span(self.low, self.high, log=self.log)
        if share <= 0 or share >= 1:
            return float(self.high if share >= 1 else self.low)
        number = low + share * (high - low)
        return min(self.high, max(self.low, math.exp(number) if self.log else number))

    def share(self, value: float) -> float:
        """Return how far from low to high a number lies, 0 to 1."""
        low, high = _span(self.low, self.high, log=self.log)
        return ((math.log(value) if self.log else value) - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number between `low` and `high`, both included."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        if not (type(self.low) is int and type(self.high) is int):
            raise ConfigError(f"an Int needs whole bounds, got {self.low!r} and {self.high!r}")
        _check_bounds(self.low, self.high, log=self.log)

    def at(self, share: float) -> int:
        """Return the whole number that lies so far from low to high."""
        low, high = _span(self.low - 0.5, self.high + 0.5, log=self.log)
        number = low + min(1.0, max(0.0, share)) * (high - low)
        return min(self.high, max(self.low, round(math.exp(number) if self.log else number)))

    def share(self, value: float) -> float:
        """Return how far from low to high a whole number lies, 0 to 1."""
        low, high = _span(self.low - 0.5, self.high + 0.5, log=self.log)
        return ((math.log(value) if self.log else value) - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several options, without an order."""

    options: tuple[Value, ...]

    def __init__(self, options: Sequence[Value]) -> None:
        """At least two options, all different."""
        object.__setattr__(self, "options", tuple(options))
        if len(self.options) < 2 or len(set(self.options)) < len(self.options):
            raise ConfigError(f"a Choice needs two or more different options, got {options!r}")


Knob: TypeAlias = Float | Int | Choice
Space: TypeAlias = Mapping[str, Knob]


def draw(knob: Knob, random_: random.Random) -> Value:
    """Return a value from anywhere in a knob's range, each as likely."""
    if isinstance(knob, Choice):
        return knob.options[random_.randrange(len(knob.options))]
    return knob.at(random_.random())


def check_space(space: Space) -> None:
    """Refuse a space without knobs, or with something that is none."""
    if not space:
        raise ConfigError("the space is empty: name at least one Float, Int or Choice")
    for name, knob in space.items():
        if not isinstance(knob, Float | Int | Choice):
            raise ConfigError(f"space[{name!r}] must be a Float, Int or Choice, got {knob!r}")


def check_settings(space: Space, settings: Mapping[str, Value]) -> None:
    """Refuse settings that do not lie in the space; says which one."""
    if set(settings) != set(space):
        raise DataError(
            f"a candidate must have the settings {sorted(space)}, got {sorted(settings)}"
        )
    for name, knob in space.items():
        value = settings[name]
        inside = (
            value in knob.options
            if isinstance(knob, Choice)
            else isinstance(value, int | float) and knob.low <= value <= knob.high
        )
        if not inside:
            raise DataError(f"{name}={value!r} lies outside of {knob}")


def _check_bounds(low: float, high: float, *, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"bounds must be finite, low below high, got {low!r} and {high!r}")
    if log and low <= 0:
        raise ConfigError(f"a log range needs low > 0, got {low!r}")


def _span(low: float, high: float, *, log: bool) -> tuple[float, float]:
    return (math.log(low), math.log(high)) if log else (low, high)
