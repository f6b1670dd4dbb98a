"""Looking at a comparison while it runs, without raising its error rate.

Stopping at the first interval without 0 finds a difference too often: with five looks at two equal
models, 14 % of the time instead of 5 %. Here every look gets a part of the error rate, as a
*spending function* of the share of the data seen so far (Lan and DeMets 1983,
https://doi.org/10.1093/biomet/70.3.659). The one used spends little early, like the boundaries of
O'Brien and Fleming:

    spent(t) = 2 - 2 Phi(z_{a/2} / sqrt(t))        for one side with error rate a, 0 < t <= 1

The intervals of the looks are *repeated confidence intervals* (Jennison and Turnbull 1989,
https://doi.org/10.1111/j.2517-6161.1989.tb01433.x): with at least the confidence asked for, all of
them hold the true value at once, whatever decides when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from orbiter.train.errors import ConfigError
from orbiter.train.evaluation.interval import (
    RESAMPLES,
    Interval,
    finite_values,
    paired_difference,
    takes_two_values,
)
from orbiter.train.evaluation.share import exact_share
from orbiter.train.evaluation.student import normal_quantile, student_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRID = 400
"""Points of the numerical integration; more change a boundary by less than 1e-4."""
REACH = 8.0
"""Standard deviations below 0 at which the integration begins."""
RESOLVED = 50
"""Fewest resampled means beyond an end of a bootstrap interval for which it is used."""


@dataclass(frozen=True, slots=True)
class Looks:
    """The planned looks at a comparison, and the error rate that each may spend."""

    sizes: tuple[int, ...]
    """Number of items that each look has seen, increasing; the last one is the most."""
    confidence: float = 0.95
    """Confidence with which all intervals hold together."""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must lie in (0, 1), got {self.confidence!r}")
        increasing = all(a < b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        if not self.sizes or self.sizes[0] < 1 or not increasing:
            raise ConfigError(f"looks need increasing numbers of items, got {self.sizes}")

    @property
    def tails(self) -> tuple[float, ...]:
        """Error rate of one side of each look's interval, as if it were the only one."""
        return self.corrected(1)

    def corrected(self, comparisons: int) -> tuple[float, ...]:
        """Return the tails that hold for several comparisons at once (Bonferroni)."""
        most = self.sizes[-1]
        shares = tuple(size / most for size in self.sizes)
        # Both sides together may err with 1 - confidence, hence the 2.
        return _tails(shares, (1 - self.confidence) / 2 / comparisons)


def plan_looks(
    n: int, looks: int, *, confidence: float = 0.95, fewest: int = 20, multiple: int = 1
) -> Looks:
    """Return `looks` equally spaced looks at n items.

    There are fewer if a part would have less than `fewest` items. All sizes but the last are
    multiples of `multiple`.

    Raises:
        ConfigError: there are no items, or less than one look.
    """
    if n < 1 or looks < 1:
        raise ConfigError(f"a comparison needs at least one item and one look, got {n} and {looks}")
    parts = max(1, min(looks, n // max(1, fewest)))
    sizes = [math.ceil(n * part / parts / multiple) * multiple for part in range(1, parts)]
    return Looks((*dict.fromkeys(size for size in sizes if size < n), n), confidence)


def interval_at(a: Iterable[float], b: Iterable[float], *, tail: float, seed: int = 0) -> Interval:
    """Return the mean of `a[i] - b[i]` with an interval that misses by `tail` on either side.

    It is the interval of `paired_difference`, except where that one bootstraps and `tail` is so
    small that resampling cannot show it; there it is the mean with Student's t. Where all
    differences are equal, neither sees any spread: there the ends leave room for the items that
    were not seen. The share of them on which the difference is another one is bounded as that of
    an event that was never seen (Clopper and Pearson), and its size by the range of the values.

    Raises:
        DataError: `a` and `b` differ in length, are empty, or contain a value that is not finite.
    """
    first, second = finite_values(a, "a"), finite_values(b, "b")
    # Unequal lengths are refused by paired_difference below.
    differences = [x - y for x, y in zip(first, second, strict=False)]
    if (
        len(first) == len(second) > 1
        and len({*differences}) == 1
        and not takes_two_values(first, second)
    ):
        return _unseen_interval(differences, max(*first, *second) - min(*first, *second), tail)
    if (
        tail * RESAMPLES >= RESOLVED
        or len(first) != len(second)
        or len(first) < 3
        or takes_two_values(first, second)
    ):
        return paired_difference(first, second, confidence=1 - 2 * tail, seed=seed)
    return _student_interval(differences, tail)


def _unseen_interval(equal: Sequence[float], span: float, tail: float) -> Interval:
    room = span * exact_share(0, len(equal), 1 - 2 * tail).high
    return Interval(equal[0], equal[0] - room, equal[0] + room, len(equal))


def _student_interval(values: Sequence[float], tail: float) -> Interval:
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = student_quantile(1 - tail, n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


@lru_cache(maxsize=64)
def _tails(shares: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Return for each look the tail beyond its boundary; together they err with `alpha`."""
    return tuple(0.5 * math.erfc(c / math.sqrt(2)) for c in boundaries(shares, alpha))


def spent(share: float, alpha: float) -> float:
    """Return the error rate of one side that may be spent when `share` of the data is seen."""
    # 2 - 2 Phi(x) = erfc(x / sqrt(2)).
    return math.erfc(normal_quantile(1 - alpha / 2) / math.sqrt(2 * share))


def boundaries(shares: Sequence[float], alpha: float) -> list[float]:
    """Return for each look the z value from which it rejects, for one side with error rate `alpha`.

    The sums of the items behave like Brownian motion; its density below the boundaries is followed
    from look to look by numerical integration (Armitage, McPherson and Rowe 1969,
    https://doi.org/10.2307/2343787).

    Args:
        shares: Share of the data that each look has seen, increasing to 1.
        alpha: Error rate of one side.
    """
    import numpy as np

    places, weights = np.zeros(1), np.ones(1)  # all mass at 0 before the first look
    before = already = 0.0
    limits = []
    for share in shares:
        # Brownian motion: increments are normal, with the share of new data as their variance.
        step = math.sqrt(share - before)
        # The error rate that this look adds to what earlier looks have spent.
        wanted = spent(share, alpha) - already
        low, high = -REACH * math.sqrt(share), REACH * 2 * math.sqrt(share)
        # Bisection; 60 halvings reach the precision of a float.
        for _ in range(60):
            middle = (low + high) / 2
            beyond = sum(
                weight * 0.5 * math.erfc((middle - place) / step / math.sqrt(2))
                for place, weight in zip(places.tolist(), weights.tolist(), strict=True)
            )
            low, high = (middle, high) if beyond > wanted else (low, middle)
        # Back to a z value: the sum divided by its standard deviation.
        limits.append(high / math.sqrt(share))
        new = np.linspace(-REACH * math.sqrt(share), high, GRID + 1)
        # Only paths that have not crossed a boundary yet continue to the next look.
        density = np.exp(-0.5 * ((new[:, None] - places[None, :]) / step) ** 2)
        density = density @ weights / (step * math.sqrt(2 * math.pi))
        places, weights = new, density * _simpson(GRID + 1) * (new[1] - new[0])
        before, already = share, spent(share, alpha)
    return limits


def _simpson(points: int) -> NDArray[np.float64]:
    """Return the weights of Simpson's rule for an odd number of points at a distance of 1."""
    import numpy as np

    weights = np.full(points, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return weights / 3
