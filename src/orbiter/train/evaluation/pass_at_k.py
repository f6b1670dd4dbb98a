"""pass@k: the chance that at least one of k attempts succeeds."""

from __future__ import annotations

import math

from orbiter.train.errors import ConfigError


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate from `c` successes in `n` attempts the chance that one of `k` attempts succeeds.

        pass@k = 1 - C(n - c, k) / C(n, k)

    Chen et al. 2021, equation 1, https://arxiv.org/abs/2107.03374. The estimate is unbiased, while
    the simple 1 - (1 - c/n)^k is too low. It is computed in integers and rounded once. It is for
    one task: average it over tasks, for instance with `mean_interval`.

    Raises:
        ConfigError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ConfigError(f"c must lie in [0, n], got c={c} successes of n={n} attempts")
    if not 1 <= k <= n:
        raise ConfigError(f"k must lie in [1, n], got k={k} with n={n} attempts; sample more")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every
