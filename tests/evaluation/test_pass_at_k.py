from fractions import Fraction
from itertools import combinations

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.evaluation import pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_k_subsets_with_a_success(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            drawn = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == float(Fraction(sum(map(any, drawn)), len(drawn)))


def test_pass_at_k_is_unbiased() -> None:
    # The expectation over c of the estimate, for true rate p, is exactly 1 - (1 - p)^k.
    n, k, p = 6, 3, Fraction(3, 10)
    binomial = [1, 6, 15, 20, 15, 6, 1]
    expected = sum(
        float(binomial[c] * p**c * (1 - p) ** (n - c)) * pass_at_k(n, c, k) for c in range(n + 1)
    )
    assert expected == pytest.approx(float(1 - (1 - p) ** k), rel=1e-14)


def test_pass_at_k_stays_exact_for_many_attempts() -> None:
    assert pass_at_k(100_000, 1, 1) == 1e-5
    assert pass_at_k(2000, 0, 1000) == 0.0
    assert pass_at_k(2000, 1001, 1000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ConfigError, match="must lie in"):
        pass_at_k(n, c, k)
