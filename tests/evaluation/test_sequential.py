"""Looks at a comparison in progress: golden boundaries, and how often they err in simulation."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation import (
    Looks,
    detectable_difference,
    interval_at,
    paired_difference,
    plan_looks,
)
from orbiter.train.evaluation.sequential import boundaries, spent
from orbiter.train.evaluation.student import student_quantile, student_tail

Draw = Callable[[random.Random], float]


def test_the_boundaries_are_those_of_gsdesign() -> None:
    # R, gsDesign 3.6: gsDesign(k = 5, test.type = 1, alpha = 0.025, sfu = sfLDOF)$upper$bound
    golden = [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]
    found = boundaries([0.2, 0.4, 0.6, 0.8, 1.0], 0.025)
    assert found == pytest.approx(golden, abs=2e-4)


def test_one_look_is_the_interval_that_one_would_compute_anyway() -> None:
    assert plan_looks(100, 1).tails == pytest.approx((0.025,), abs=1e-6)


@pytest.mark.parametrize("looks", [2, 5, 9])
def test_at_the_end_all_of_the_error_rate_is_spent(looks: int) -> None:
    assert spent(1.0, 0.025) == pytest.approx(0.025)
    shares = [k / looks for k in range(1, looks + 1)]
    assert sorted(boundaries(shares, 0.025), reverse=True) == boundaries(shares, 0.025)
    assert plan_looks(100 * looks, looks).tails[-1] < 0.025


def binary(rng: random.Random) -> float:
    return float(rng.random() < 0.7)


def normal(rng: random.Random) -> float:
    return rng.gauss(0.0, 1.0)


def skewed(rng: random.Random) -> float:
    return rng.expovariate(1.0)


def errs(draw: Draw, looks: Looks, tails: tuple[float, ...], seed: int) -> bool:
    """Whether any look at two equal models says that they differ."""
    rng = random.Random(seed)
    most = looks.sizes[-1]
    a, b = ([draw(rng) for _ in range(most)] for _ in "ab")
    for size, tail in zip(looks.sizes, tails, strict=True):
        interval = interval_at(a[:size], b[:size], tail=tail)
        if not interval.low <= 0 <= interval.high:
            return True
    return False


@pytest.mark.parametrize(("draw", "runs"), [(binary, 1000), (normal, 300), (skewed, 300)])
def test_two_equal_models_are_told_apart_no_more_often_than_promised(draw: Draw, runs: int) -> None:
    looks = plan_looks(100, 5)
    rate = sum(errs(draw, looks, looks.tails, seed) for seed in range(runs)) / runs
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_the_same_simulation_shows_what_naive_looks_do() -> None:
    looks = plan_looks(100, 5)
    rate = sum(errs(binary, looks, (0.025,) * 5, seed) for seed in range(600)) / 600
    assert rate > 0.09


@pytest.mark.slow
def test_a_difference_of_the_detectable_size_is_found_four_times_out_of_five() -> None:
    looks = plan_looks(200, 5)
    true = detectable_difference(looks, 1.0)
    found = 0
    for seed in range(600):
        rng = random.Random(seed)
        differences = [rng.gauss(true, 1.0) for _ in range(200)]
        intervals = (
            interval_at(differences[:size], [0.0] * size, tail=tail)
            for size, tail in zip(looks.sizes[:-1], looks.tails, strict=False)
        )
        if any(interval.low > 0 for interval in intervals):
            found += 1
            continue
        # The last look without its bootstrap, which takes most of the time of this test.
        mean = math.fsum(differences) / 200
        found += mean > student_quantile(1 - looks.tails[-1], 199) / math.sqrt(200)
    assert 0.8 - 3 * 0.0163 <= found / 600 <= 0.9


def test_the_detectable_difference_in_plain_numbers() -> None:
    # By hand: 1.95996 + 0.84162 = 2.80158, times the root of 0.005.
    assert detectable_difference(plan_looks(100, 1), 0.5**0.5) == pytest.approx(0.19810, abs=1e-5)
    with pytest.raises(ConfigError, match="power must lie"):
        detectable_difference(plan_looks(100, 1), 1.0, power=1.0)


def test_looks_are_even_and_never_tiny() -> None:
    assert plan_looks(100, 5).sizes == (20, 40, 60, 80, 100)
    assert plan_looks(45, 5).sizes == (23, 45)
    assert plan_looks(7, 5).sizes == (7,)


@pytest.mark.parametrize(("n", "looks"), [(0, 5), (10, 0)])
def test_no_items_or_no_looks_are_refused(n: int, looks: int) -> None:
    with pytest.raises(ConfigError, match="at least one item and one look"):
        plan_looks(n, looks)


@pytest.mark.parametrize("sizes", [(), (0, 3), (3, 3), (5, 2)])
def test_sizes_must_increase(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="increasing numbers"):
        Looks(sizes)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_the_confidence_is_checked(confidence: float) -> None:
    with pytest.raises(ConfigError, match=r"confidence must lie in \(0, 1\)"):
        plan_looks(100, 5, confidence=confidence)


def test_more_comparisons_have_wider_intervals() -> None:
    looks = plan_looks(100, 5)
    assert all(x < y for x, y in zip(looks.corrected(10), looks.tails, strict=True))


def test_a_wide_tail_gives_the_usual_interval_and_a_small_one_student_s() -> None:
    rng = random.Random(3)
    a, b = ([rng.random() for _ in range(30)] for _ in "ab")
    assert interval_at(a, b, tail=0.025) == paired_difference(a, b, confidence=0.95)
    narrow, wide = interval_at(a, b, tail=1e-3), interval_at(a, b, tail=1e-6)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_graded_rewards_that_agree_everywhere_leave_room_for_items_that_were_not_seen() -> None:
    graded = [place % 3 / 2 for place in range(40)]
    equal = interval_at(graded, graded, tail=0.025)
    assert equal.mean == 0
    assert equal.high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert equal.low == -equal.high
    assert interval_at(graded * 10, graded * 10, tail=0.025).high < equal.high / 9
    assert interval_at(graded, graded, tail=1e-6).high > 2 * equal.high
    shifted = interval_at([value + 0.25 for value in graded], graded, tail=0.025)
    assert shifted.low < 0.25 < shifted.high
    assert interval_at([0.3] * 9, [0.3] * 9, tail=0.025) == (0, 0, 0, 9)


def test_rare_differences_of_graded_rewards_are_in_the_interval_as_often_as_promised() -> None:
    """B loses one point on 5 % of the items; of 40 items, one study in eight sees none of them."""
    rng = random.Random(5)
    blind = held = 0
    for _ in range(400):
        before = [rng.choice([0.0, 1.0, 2.0]) for _ in range(40)]
        after = [value - (rng.random() < 0.05) for value in before]
        interval = interval_at(after, before, tail=0.025)
        if after == before:
            blind += 1
            held += interval.low <= -0.05 <= interval.high
    assert blind > 30
    assert held == blind


def test_pairs_must_match() -> None:
    with pytest.raises(DataError, match="same items on both sides"):
        interval_at([1.0, 2.0, 4.0], [1.0], tail=1e-6)


@given(st.floats(0.0, 30.0), st.integers(1, 60))
def test_student_s_tail_is_the_integral_of_its_density(t: float, degrees: int) -> None:
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    steps = 2000

    def density(x: float) -> float:
        power = -(degrees + 1) / 2 * math.log1p(x * x / degrees)
        return math.exp(scale + power) / math.sqrt(degrees * math.pi)

    inner = [density(t * k / steps) * (4 if k % 2 else 2) for k in range(1, steps)]
    integral = (density(0.0) + density(t) + math.fsum(inner)) * t / steps / 3
    assert student_tail(t, degrees) == pytest.approx(0.5 - integral, abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (30, 2.04227), (1000, 1.96234)]
)
def test_student_s_quantiles_are_those_of_the_tables(degrees: int, table: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(table, abs=1e-4)
