"""The coverage of the intervals of shares, summed over every outcome instead of simulated."""

from math import comb

import pytest

from orbiter.train.evaluation import Interval, mean_interval, paired_difference
from orbiter.train.evaluation.share import exact_share, paired_share_difference

SHARES = [0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]


def holds(interval: Interval, true: float) -> bool:
    return interval.low <= true <= interval.high


@pytest.mark.parametrize("n", [2, 5, 10, 20, 35, 50, 100])
def test_the_interval_of_a_share_holds_it_at_least_as_often_as_it_says(n: int) -> None:
    intervals = [mean_interval([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
    for p in SHARES:
        chance = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        covered = sum(c for k, c in enumerate(chance) if holds(intervals[k], p))
        # A bootstrap covers 0.64 at p = 0.98 and n = 50, since 36 % of all samples have no failure.
        assert covered >= 0.95, (n, p)


@pytest.mark.parametrize("n", [20, 30])
@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0.02, 0.02), (0.05, 0.05), (0.1, 0.0), (0.3, 0.1), (0.6, 0.0)]
)
def test_the_interval_of_a_paired_difference_holds_it_about_as_often_as_it_says(
    only_a: float, only_b: float, n: int
) -> None:
    neither = 1 - only_a - only_b
    covered = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            ways = comb(n, a) * comb(n - a, b)
            chance = ways * only_a**a * only_b**b * neither ** (n - a - b)
            ends = paired_share_difference(a, b, n, 0.95)
            covered += chance * (ends.low <= only_a - only_b <= ends.high)
    assert covered >= 0.93, covered


@pytest.mark.parametrize(("passed", "n"), [(34, 40), (1, 20), (7, 9), (3, 1000)])
def test_each_end_is_the_share_at_which_such_an_outcome_has_half_of_the_error(
    passed: int, n: int
) -> None:
    low, high = exact_share(passed, n, 0.9)

    def chance(p: float, outcomes: range) -> float:
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in outcomes)

    assert chance(low, range(passed, n + 1)) == pytest.approx(0.05, rel=1e-6)
    assert chance(high, range(passed + 1)) == pytest.approx(0.05, rel=1e-6)


def test_the_score_test_on_the_edge_of_the_paired_interval_is_just_significant() -> None:
    # By hand for no difference: McNemar's statistic (5 - 0) / sqrt(5 + 0) exceeds 1.96, so the
    # interval leaves out 0; (4 - 0) / sqrt(4) = 2 does too, and (3 - 0) / sqrt(3) = 1.73 does not.
    for only_a, excluded in ((5, True), (4, True), (3, False)):
        ends = paired_share_difference(only_a, 0, 40, 0.95)
        assert (ends.low > 0) is excluded
    mirrored = paired_share_difference(3, 7, 25, 0.9)
    straight = paired_share_difference(7, 3, 25, 0.9)
    assert mirrored.low == pytest.approx(-straight.high)
    assert mirrored.high == pytest.approx(-straight.low)


def test_ten_passes_of_ten_do_not_prove_perfection() -> None:
    perfect, failed = mean_interval([True] * 10), mean_interval([False] * 10)
    assert (perfect.mean, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(0.6915, abs=1e-4)
    assert (failed.low, failed.mean) == (0.0, 0.0)
    assert failed.high == pytest.approx(0.3085, abs=1e-4)


def test_two_values_are_a_share_whatever_they_are() -> None:
    share = mean_interval([0, 1, 1, 1, 1])
    for low, high in ((-1.0, 1.0), (0.0, 2.0), (0.25, 0.75)):
        scaled = mean_interval([low, high, high, high, high])
        expected = [low + (high - low) * end for end in share[:3]]
        assert list(scaled[:3]) == pytest.approx(expected)


def test_agreement_on_every_item_does_not_prove_equality() -> None:
    same = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert same.mean == 0
    assert same.low == pytest.approx(-same.high)
    assert same.low < -0.4
    always = paired_difference([3.0] * 4, [1.5] * 4)
    assert 0 < always.low < always.mean == always.high == 1.5
