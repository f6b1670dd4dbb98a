"""Conditions on differences of rewards, such as "reward > 0", and whether intervals meet them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from orbiter.train.errors import ConfigError, did_you_mean
from orbiter.train.evaluation import Interval

TOTAL = "reward"
"""Name of the total reward; one of several is "reward/NAME"."""
Verdict = Literal["met", "not met", "undecided"]

_FORM = re.compile(
    r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", re.ASCII
)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound for the difference B - A of a reward."""

    reward: str
    """ "reward" for the total, "reward/NAME" for one of several."""
    sign: str
    """One of > >= < <=."""
    bound: float

    def verdict(self, difference: Interval) -> Verdict:
        """Return whether the whole interval meets the bound, no part of it does, or only a part."""
        holds = _OPERATORS[self.sign]
        ends = (holds(difference.low, self.bound), holds(difference.high, self.bound))
        # The bound is one-sided, so the two ends decide for all values between them.
        return "met" if all(ends) else "undecided" if any(ends) else "not met"

    def __str__(self) -> str:
        return f"{self.reward} {self.sign} {self.bound:g}"


def parse_requirement(text: str, rewards: Iterable[str]) -> Requirement:
    """Return the requirement that a text states: a reward, one of > >= < <=, and a number.

    Args:
        text: Such as "reward > 0", or "reward/exact >= -0.02".
        rewards: Names of the rewards besides the total.

    Raises:
        ConfigError: the text has another form, the number is not finite, or there is no such
            reward; says what is possible.
    """
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise ConfigError(
            f'a requirement must look like "reward > 0": a reward, one of > >= < <=, and a number; '
            f"got {text!r}"
        )
    name, sign, number = parts.groups()
    known = [TOTAL, *(f"{TOTAL}/{reward}" for reward in rewards)]
    if name not in known:
        raise ConfigError(
            f"the requirement {text!r} names {name!r}, and the rewards are "
            f"{', '.join(map(repr, known))}{did_you_mean(name, known)}"
        )
    bound = float(number)
    if not math.isfinite(bound):
        raise ConfigError(f"the requirement {text!r} needs a finite number, got {number}")
    return Requirement(name, sign, bound)
