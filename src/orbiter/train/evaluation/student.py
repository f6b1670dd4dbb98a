"""Quantiles of the normal distribution and of Student's t, without SciPy."""

from __future__ import annotations

import math


def normal_quantile(probability: float) -> float:
    """Return the standard normal quantile of a probability in (0, 1)."""
    from statistics import NormalDist  # the import takes 8 ms

    return NormalDist().inv_cdf(probability)


def student_tail(t: float, degrees: int) -> float:
    """Return P(T > t) for Student's t with a whole number of degrees of freedom, for t >= 0.

    The finite sums of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle) ** 2
    term = math.cos(angle) if degrees % 2 else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if degrees % 2 else 2, degrees - 1, 2):
        term *= cosine * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    return (1 - (2 / math.pi * (angle + inside) if degrees % 2 else inside)) / 2


def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t for a probability in [0.5, 1).

    From 1,000 degrees of freedom on it is expanded around the normal one, where the sums above lose
    digits of small tails.
    """
    z = normal_quantile(probability)
    if degrees >= 1000:
        return z + (z**3 + z) / (4 * degrees)
    low, high, tail = 0.0, 1.0, 1 - probability
    while student_tail(high, degrees) > tail:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > tail else (low, middle)
    return high
