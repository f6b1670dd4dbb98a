"""A space of settings (numbers, whole numbers, choices): drawn, varied and kept in bounds."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

from orbiter.train.errors import ConfigError, DataError

Value: TypeAlias = Any
"""A number for a Float or an Int; one of the options for a Choice."""
Settings: TypeAlias = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Float:
    """A number between `low` and `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Search by factors instead of differences, as for a learning rate. Needs low > 0."""

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, log=self.log)

    def at(self, share: float) -> float:
        """Return the number at this share of the way from low to high, clipped to 0 and 1."""
        low, high = _span(self.low, self.high, log=self.log)
        # Exactly the bound, which exp(log(bound)) may miss by a rounding error.
        if share <= 0 or share >= 1:
            return float(self.high if share >= 1 else self.low)
        number = low + share * (high - low)
        return min(self.high, max(self.low, math.exp(number) if self.log else number))

    def share(self, value: float) -> float:
        """Return a number's share of the way from low to high, 0 to 1."""
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
        """Return the whole number at this share of the way from low to high."""
        # Half a unit more at both ends, so that each number has an equal share.
        low, high = _span(self.low - 0.5, self.high + 0.5, log=self.log)
        number = low + min(1.0, max(0.0, share)) * (high - low)
        return min(self.high, max(self.low, round(math.exp(number) if self.log else number)))

    def share(self, value: float) -> float:
        """Return a whole number's share of the way from low to high, 0 to 1."""
        low, high = _span(self.low - 0.5, self.high + 0.5, log=self.log)
        return ((math.log(value) if self.log else value) - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several options without an order; an option may be anything that == can compare."""

    options: tuple[Value, ...]

    def __init__(self, options: Sequence[Value]) -> None:
        """At least two options, all different."""
        # The dataclass is frozen, also for its own constructor.
        object.__setattr__(self, "options", tuple(options))
        try:
            repeated = any(a == b for a, b in combinations(self.options, 2))
        except ValueError as error:  # arrays, whose == is no yes or no
            raise ConfigError(
                f"the options of a Choice must be comparable by ==, got {options!r}; use their "
                "names or indices"
            ) from error
        # Compared by ==, not put into a set: options may be lists or dicts.
        if len(self.options) < 2 or repeated:
            raise ConfigError(f"a Choice needs two or more different options, got {options!r}")


Knob: TypeAlias = Float | Int | Choice
Space: TypeAlias = Mapping[str, Knob]


def draw(knob: Knob, random_: random.Random) -> Value:
    """Return a value from anywhere in a knob's range, all equally likely."""
    if isinstance(knob, Choice):
        return knob.options[random_.randrange(len(knob.options))]
    return knob.at(random_.random())


def check_space(space: Space) -> None:
    """Refuse a space without knobs, or with something other than knobs in it."""
    if not space:
        raise ConfigError("the space is empty: name at least one Float, Int or Choice")
    for name, knob in space.items():
        if not isinstance(knob, Float | Int | Choice):
            raise ConfigError(f"space[{name!r}] must be a Float, Int or Choice, got {knob!r}")


def check_settings(space: Space, settings: Mapping[str, Value]) -> None:
    """Refuse settings outside of the space, and name the first one."""
    if not isinstance(settings, Mapping):
        raise DataError(
            f"a candidate must be a dict with the settings {sorted(space)}, got {settings!r:.80}"
        )
    if set(settings) != set(space):
        names = sorted(map(str, settings))
        raise DataError(f"a candidate must have the settings {sorted(space)}, got {names}")
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
