"""A mean with its interval, and the paired comparison of two sets of scores.

The method depends on the values:

- two distinct values, such as passes and failures, are counted: the exact interval of a share
  (Clopper and Pearson), which holds the true one with at least the confidence asked for;
- differences of paired passes and failures: the score interval of Tango;
- anything else: the *expanded* percentile bootstrap, Hesterberg 2015, "What Teachers Should Know
  About the Bootstrap", section 3.3, https://arxiv.org/abs/1411.5279. Resample the values n by n,
  take the means, and cut their distribution on either side at

      alpha' = Phi(-sqrt(n / (n - 1)) * t_{1 - alpha/2, n-1})

The plain percentile interval cuts at alpha/2 and is too narrow for small n, and BCa corrects for
skew but not for this. Measured coverage of 4,000 intervals at 95 %, for 10 normal and 20
exponential values: percentile 0.896, 0.903; BCa 0.893, 0.907; expanded percentile 0.943, 0.922.

Not here: hierarchical resampling. Values that belong together (the steps of one episode, the
samples of one task) are not independent: average them first and pass one value for each group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from orbiter.train.checks import is_finite_number
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation.share import Ends, exact_share, paired_share_difference
from orbiter.train.evaluation.student import student_quantile

if TYPE_CHECKING:
    from statistics import NormalDist

    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 5_000
"""The number of resampled means; the ends of an interval then vary by about 2 % of its width."""

LARGE = 5_000
"""From this number of values on, the normal interval (the bootstrap's limit) is used instead."""

_CHUNK = 2_000_000
"""The number of values resampled at once; limits the memory to about 50 MB."""


class Interval(NamedTuple):
    """A mean with its confidence interval and the number of values."""

    mean: float
    low: float
    """Lower end; -inf for a single value, which has no spread."""
    high: float
    """Upper end; inf for a single value, which has no spread."""
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"


def mean_interval(values: Iterable[float], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean of `values` and an interval that holds the true mean with `confidence`.

    The order of the values does not matter. Values that are all 0 or 1 are a share of passes, and
    so are values of which only two different ones occur. For a single value the interval is
    infinite. If all values are equal and neither 0 nor 1 its width is zero: the values show no
    spread.

    Raises:
        DataError: there are no values, or one is not a finite number; the message names its index.
        ConfigError: `confidence` is outside (0, 1).
    """
    _check_confidence(confidence)
    # Sorted, so that the result does not depend on the order of the values.
    ordered = sorted(finite_values(values))
    n = len(ordered)
    if n == 1:
        return Interval(ordered[0], -math.inf, math.inf, 1)
    if ordered[0] == ordered[-1]:
        return _of_equal_values(ordered[0], n, confidence)
    # Scaling by a power of two is exact and keeps sums of values near 1e308 from overflowing.
    exponent = math.frexp(max(-ordered[0], ordered[-1]))[1]
    scaled = [math.ldexp(value, -exponent) for value in ordered]
    mean = math.fsum(scaled) / n
    two_values = n == ordered.count(ordered[0]) + ordered.count(ordered[-1])
    low, high = (
        _ends_of_two_values(scaled, confidence) if two_values else _ends(scaled, confidence, seed)
    )
    return Interval(
        math.ldexp(mean, exponent),
        # Rounding may put an end on the wrong side of the mean.
        math.ldexp(min(low, mean), exponent),
        math.ldexp(max(high, mean), exponent),
        n,
    )


def paired_difference(
    a: Iterable[float], b: Iterable[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return the mean of `a[i] - b[i]` with its interval: to see whether `a` is better than `b`.

    If the interval does not contain 0, the difference is significant at that confidence. Pairing
    removes the variance of the items' difficulty, so it finds differences that two separate
    intervals would hide. If `a` and `b` are passes and failures (0 and 1, or the same two values),
    the interval is wider than zero even where both agree on every item.

    Raises:
        DataError: `a` and `b` differ in length, are empty, or contain a value that is not finite.
    """
    first, second = finite_values(a, "a"), finite_values(b, "b")
    if len(first) != len(second):
        raise DataError(
            f"a paired comparison needs the same items on both sides, got {len(first)} values in a "
            f"and {len(second)} in b"
        )
    _check_confidence(confidence)
    outcomes = _two_outcomes(first, second)
    if outcomes is not None and len(first) > 1:
        return _paired_shares(first, second, outcomes, confidence)
    differences = [x - y for x, y in zip(first, second, strict=True)]
    # mean_interval would take differences that are all 0 or all 1 for a share of passes.
    if min(differences) == max(differences) and len(differences) > 1:
        return Interval(differences[0], differences[0], differences[0], len(differences))
    return mean_interval(differences, confidence=confidence, seed=seed)


def finite_values(values: Iterable[float], name: str = "values") -> list[float]:
    """Return the values as floats; refuse an empty list and any value that is not finite."""
    numbers = []
    for index, value in enumerate(values):
        if not is_finite_number(value):
            raise DataError(f"{name}[{index}] must be a finite number, got {value!r}")
        numbers.append(float(value))
    if not numbers:
        raise DataError(f"{name} is empty: there is nothing to take the mean of")
    return numbers


def takes_two_values(a: list[float], b: list[float]) -> bool:
    """Return whether a and b are passes and failures, or take the same two values throughout."""
    return _two_outcomes(a, b) is not None


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie in (0, 1), got {confidence!r}")


def _of_equal_values(value: float, n: int, confidence: float) -> Interval:
    """Return the interval of n equal values: of a share if they are all 0 or all 1."""
    if value not in (0, 1):
        return Interval(value, value, value, n)
    low, high = exact_share(n if value else 0, n, confidence)
    return Interval(value, low, high, n)


def _ends_of_two_values(ordered: list[float], confidence: float) -> Ends:
    """Return the ends for values of which only two different ones occur."""
    least, greatest = ordered[0], ordered[-1]
    share = exact_share(ordered.count(greatest), len(ordered), confidence)
    width = greatest - least
    # Rounding must not leave the range of the values.
    return Ends(max(least, least + width * share.low), min(greatest, least + width * share.high))


def _two_outcomes(a: list[float], b: list[float]) -> Ends | None:
    """Return the two values that a and b take: 0 and 1 if they can be; None if there are more."""
    values = {*a, *b}
    if values <= {0.0, 1.0}:
        return Ends(0.0, 1.0)
    low, high = min(values), max(values)
    return Ends(low, high) if len(values) == 2 and math.isfinite(high - low) else None


def _paired_shares(a: list[float], b: list[float], outcomes: Ends, confidence: float) -> Interval:
    pairs, n = list(zip(a, b, strict=True)), len(a)
    only_a, only_b = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    low, high = paired_share_difference(only_a, only_b, n, confidence)
    width, mean = outcomes.high - outcomes.low, (only_a - only_b) / n
    return Interval(width * mean, width * low, width * high, n)


def _normal() -> NormalDist:
    from statistics import NormalDist  # the import takes 8 ms

    return NormalDist()


def _ends(ordered: list[float], confidence: float, seed: int) -> Ends:
    import numpy as np

    values = np.array(ordered)
    n, tail = len(ordered), (1 - confidence) / 2
    if n >= LARGE:
        mean, half = values.mean(), -_normal().inv_cdf(tail) * values.std(ddof=1) / math.sqrt(n)
        # A mean cannot lie outside the values.
        return Ends(float(max(mean - half, ordered[0])), float(min(mean + half, ordered[-1])))
    expanded = _normal().cdf(-math.sqrt(n / (n - 1)) * student_quantile(1 - tail, n - 1))
    low, high = np.quantile(_resampled_means(values, seed), [expanded, 1 - expanded])
    return Ends(float(low), float(high))


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    import numpy as np

    generator = np.random.default_rng(seed)
    n = len(values)
    rows = max(1, _CHUNK // n)
    means = [
        # In chunks, so that memory does not grow with the number of resamples.
        values[generator.integers(0, n, (min(rows, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)
