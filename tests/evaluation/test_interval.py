import math
import random
import sys
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation import interval as module
from orbiter.train.evaluation import mean_interval, paired_difference
from tests.children import run_child

FINITE = st.floats(allow_nan=False, allow_infinity=False)


TRUTH = {"normal": 0.0, "skewed": 1.0, "pass": 0.3}


def one_value(draw: random.Random, kind: str) -> float:
    if kind == "normal":
        return draw.gauss(0, 1)
    return draw.expovariate(1) if kind == "skewed" else float(draw.random() < 0.3)


def coverage(kind: str, n: int, *, runs: int) -> float:
    draw = random.Random(7)
    held = 0
    for seed in range(runs):
        interval = mean_interval([one_value(draw, kind) for _ in range(n)], seed=seed)
        held += interval.low <= TRUTH[kind] <= interval.high
    return held / runs


@pytest.mark.parametrize(
    ("kind", "n", "at_least"), [("normal", 10, 0.92), ("skewed", 20, 0.90), ("pass", 20, 0.93)]
)
def test_the_95_percent_interval_holds_the_true_mean_about_that_often(
    kind: str, n: int, at_least: float
) -> None:
    # At 400 runs the share itself varies by 0.011: the plain percentile interval, at 0.895 for 10
    # normal values, is told apart from 0.945.
    assert at_least <= coverage(kind, n, runs=400) <= 0.985


def test_more_confidence_is_wider_and_the_mean_lies_inside() -> None:
    draw = random.Random(1)
    values = [draw.random() for _ in range(30)]
    narrow, wide = mean_interval(values, confidence=0.5), mean_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_the_interval_of_many_values_is_the_normal_one_and_meets_the_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(3)
    values = [draw.expovariate(1) for _ in range(module.LARGE)]
    normal = mean_interval(values)
    half = 1.959964 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    assert (normal.high - normal.low) / 2 == pytest.approx(half, rel=1e-6)
    monkeypatch.setattr(module, "LARGE", len(values) + 1)
    resampled = mean_interval(values)
    assert resampled.low == pytest.approx(normal.low, abs=0.1 * half)
    assert resampled.high == pytest.approx(normal.high, abs=0.1 * half)


def test_the_ends_are_the_expanded_quantiles_of_all_resamples() -> None:
    # Student's t at 0.9 with 4 degrees is 1.5332; times sqrt(5/4), the tail is Phi(-1.7142).
    values = [0.0, 0.13, 0.41, 0.77, 1.0]
    every = [sum(resample) / 5 for resample in product(values, repeat=5)]
    low, high = np.quantile(every, [0.04325, 1 - 0.04325])
    unexpanded = float(np.quantile(every, 0.0626))  # without the square root
    interval = mean_interval(values, confidence=0.8)
    assert interval.low == pytest.approx(low, abs=(unexpanded - float(low)) / 3)
    assert interval.high == pytest.approx(high, abs=(unexpanded - float(low)) / 3)


def test_chunks_are_no_part_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(x) for x in range(40)]
    whole = mean_interval(values, seed=5)
    monkeypatch.setattr(module, "_CHUNK", 40 * 7)
    assert mean_interval(values, seed=5) == whole


def test_the_same_values_in_another_order_and_process_give_the_same_interval() -> None:
    values = [0.1, 0.9, 0.4, 0.4, 0.7, 1.0, 0.0]
    here = mean_interval(values)
    assert mean_interval(values[::-1]) == here
    code = f"from orbiter.train.evaluation import mean_interval as m; print(repr(m({values})))"
    there = run_child([sys.executable, "-c", code], check=True)
    assert there.stdout.strip() == repr(here)


def test_another_seed_moves_the_ends_a_little_and_the_mean_not_at_all() -> None:
    draw = random.Random(2)
    values = [draw.random() for _ in range(25)]
    a, b = mean_interval(values, seed=1), mean_interval(values, seed=2)
    assert a.mean == b.mean
    assert a.low != b.low
    assert abs(a.low - b.low) < 0.1 * (a.high - a.low)


@given(st.lists(FINITE, min_size=2, max_size=8))
def test_mean_and_ends_stay_within_the_values_for_any_floats(values: list[float]) -> None:
    interval = mean_interval(values)
    mean, low, high = map(Fraction, interval[:3])
    exact = sum(map(Fraction, values), Fraction(0)) / len(values)
    if {*values} in ({0.0}, {1.0}):
        values = [0.0, 1.0]  # a share, whose interval reaches beyond what happened
    slack = max(Fraction(max(map(abs, values))) / 2**50, Fraction(1, 10**300))
    assert min(values) - slack <= low <= mean <= high <= max(values) + slack
    assert abs(mean - exact) <= slack


def test_one_value_knows_nothing_of_the_spread() -> None:
    assert mean_interval([0.5]) == (0.5, -math.inf, math.inf, 1)


def test_equal_values_have_no_width() -> None:
    assert mean_interval([0.1] * 3) == (0.1, 0.1, 0.1, 3)


def test_booleans_and_numpy_numbers_are_numbers() -> None:
    assert mean_interval([True, False]).mean == 0.5
    assert mean_interval(np.array([1, 0, 0, 1], dtype=np.float32)).mean == 0.5


def test_no_values_are_refused() -> None:
    with pytest.raises(DataError, match="values is empty"):
        mean_interval([])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 10**400, None, "0.5"])
def test_what_is_no_finite_number_is_refused_with_its_index(bad: object) -> None:
    with pytest.raises(DataError, match=r"values\[2\] must be a finite number, got"):
        mean_interval([0.0, 1.0, bad])  # type: ignore[list-item] # the mistake under test


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_a_confidence_outside_0_1_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigError, match="confidence"):
        mean_interval([1, 2], confidence=confidence)


def test_pairing_sees_what_separate_intervals_hide() -> None:
    draw = random.Random(0)
    hardness = [draw.random() for _ in range(40)]
    better = [h + 0.05 + draw.gauss(0, 0.02) for h in hardness]
    worse = [h + draw.gauss(0, 0.02) for h in hardness]
    assert mean_interval(better).low < mean_interval(worse).high
    difference = paired_difference(better, worse)
    assert 0 < difference.low < 0.05 < difference.high
    assert difference.n == 40


def test_a_paired_comparison_of_different_lengths_is_refused() -> None:
    with pytest.raises(DataError, match="2 values in a and 1 in b"):
        paired_difference([1, 2], [1])


def test_a_paired_comparison_names_the_side_and_the_index() -> None:
    with pytest.raises(DataError, match=r"b\[1\]"):
        paired_difference([1, 2], [1, math.nan])


def test_an_interval_reads_as_one_line() -> None:
    assert str(mean_interval([0.25, 0.25])) == "0.25 [0.25, 0.25] (n=2)"
