"""How large a difference must be for a comparison to find it."""

from __future__ import annotations

import math

from orbiter.train.errors import ConfigError
from orbiter.train.evaluation.sequential import Looks
from orbiter.train.evaluation.student import normal_quantile

POWER = 0.8
"""How often a difference of the returned size is found."""


def detectable_difference(looks: Looks, spread: float, *, power: float = POWER) -> float:
    """Return the smallest true difference of two means that a comparison finds with `power`.

        (z_{1 - tail} + z_{power}) * spread / sqrt(n)

    with the tail of the last look; a look before it can only find the difference earlier. For
    passes and failures that differ on a share p of the items, the spread is at most sqrt(p).

    Args:
        looks: The planned looks, whose last one sees n items.
        spread: Standard deviation of the items' differences.
        power: The chance to find it, in (0, 1).
    """
    if not 0 < power < 1 or not 0 <= spread < math.inf:
        raise ConfigError(
            f"power must lie in (0, 1) and spread be 0 or more, got {power!r} and {spread!r}"
        )
    z = normal_quantile(1 - looks.tails[-1]) + normal_quantile(power)
    return z * spread / math.sqrt(looks.sizes[-1])
