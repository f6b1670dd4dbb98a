"""Intervals for shares: of one set of passes and failures, and of the difference between two.

Near 0 and 1 a bootstrap interval of a share is far too narrow, and of all passes it has no width:
resampling cannot show an outcome that did not happen. These two count outcomes instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from statistics import NormalDist

STEPS = 60
"""Bisection steps; the last one is below 1e-18."""


class Ends(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


def exact_share(passed: int, n: int, confidence: float) -> Ends:
    """Return an interval that holds the true share with at least `confidence`, whatever it is.

    Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404: the shares p for which
    neither P(X >= passed) nor P(X <= passed) is below half of 1 - confidence, X ~ Binomial(n, p).
    """
    tail = (1 - confidence) / 2
    return Ends(_lower_end(passed, n, tail), 1 - _lower_end(n - passed, n, tail))


def paired_share_difference(only_a: int, only_b: int, n: int, confidence: float) -> Ends:
    """Return an interval for the difference of two shares that were measured on the same n items.

    Tango 1998, equation 6, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>
    3.0.CO;2-B: the differences d that a score test does not reject,

        |only_a - only_b - n d| <= z sqrt(n (2 q + d (1 - d)))

    where q is the likeliest share of items that only b passes if the difference is d.

    Args:
        only_a: Items that a passes and b does not.
        only_b: Items that b passes and a does not.
        n: All items.
        confidence: How often the interval holds the true difference, approximately.
    """
    z = -_normal().inv_cdf((1 - confidence) / 2)

    def rejected(difference: float) -> bool:
        excess = only_a - only_b - n * difference
        return abs(excess) > z * math.sqrt(n * _variance(only_a, only_b, n, difference))

    measured = (only_a - only_b) / n
    return Ends(_edge(rejected, measured, -1.0), _edge(rejected, measured, 1.0))


def _variance(only_a: int, only_b: int, n: int, difference: float) -> float:
    """Return n times the variance of the measured difference if the true one is `difference`."""
    a = 2 * n
    b = -only_a - only_b + (2 * n - only_a + only_b) * difference
    c = -only_b * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    return max(0.0, 2 * q + difference * (1 - difference))


def _edge(rejected: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the point between `inside` and `outside` where the rejection begins."""
    if not rejected(outside):
        return outside
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return inside


def _lower_end(passed: int, n: int, tail: float) -> float:
    """Return the share at which `passed` or more of n has the probability `tail`."""
    if passed == 0:
        return 0.0
    low, high = 0.0, passed / n
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(passed, n, middle) < tail else (low, middle)
    return low


def _at_least(passed: int, n: int, share: float) -> float:
    """Return P(X >= passed) for X ~ Binomial(n, share), where `passed` is at least the mean."""
    if share <= 0:
        return 0.0
    odds = share / (1 - share) if share < 1 else math.inf
    if math.isinf(odds):
        return 1.0
    ways = math.lgamma(n + 1) - math.lgamma(passed + 1) - math.lgamma(n - passed + 1)
    term = math.exp(ways + passed * math.log(share) + (n - passed) * math.log1p(-share))
    total = term
    for k in range(passed, n):  # the terms fall, since `passed` is not below the mean
        term *= (n - k) / (k + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return total


def _normal() -> NormalDist:
    from statistics import NormalDist  # the import takes 8 ms

    return NormalDist()
