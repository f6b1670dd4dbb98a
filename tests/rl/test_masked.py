from __future__ import annotations

import math
from statistics import fmean, variance

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.rl import masked_mean, masked_sum, masked_var
from tests.rl.batches import columns, gradient, mask_of, padded, ragged

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda n: sum(n) > 1)
SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, lengths=LENGTHS)
def test_sum_mean_and_variance_are_those_of_the_trained_entries(
    seed: int, lengths: list[int]
) -> None:
    rows, places = ragged(seed, "x", -5, 5, lengths), columns(seed, lengths)
    x, mask = padded(rows, places), mask_of(places)
    every = [number for row in rows for number in row]
    assert masked_sum(x, mask).item() == pytest.approx(math.fsum(every), rel=1e-12, abs=1e-12)
    assert masked_mean(x, mask).item() == pytest.approx(fmean(every), rel=1e-12, abs=1e-12)
    assert masked_var(x, mask).item() == pytest.approx(variance(every), rel=1e-12)


@given(seed=SEEDS, lengths=LENGTHS)
def test_along_an_axis_each_row_stands_alone(seed: int, lengths: list[int]) -> None:
    rows, places = ragged(seed, "x", -5, 5, lengths), columns(seed, lengths)
    x, mask = padded(rows, places), mask_of(places)
    means = [fmean(row) for row in rows]
    variances = [variance(row) if len(row) > 1 else 0.0 for row in rows]
    assert masked_mean(x, mask, dim=-1).tolist() == pytest.approx(means, rel=1e-12, abs=1e-12)
    assert masked_var(x, mask, dim=-1).tolist() == pytest.approx(variances, rel=1e-12, abs=1e-12)


def test_nothing_to_average_is_zero_and_one_entry_has_no_variance() -> None:
    x, none = torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_sum(x, none) == masked_mean(x, none) == masked_var(x, none) == 0.0
    one = none.clone()
    one[0, 1] = True
    assert masked_var(torch.full((2, 3), 7.0), one) == 0.0


def test_nan_outside_the_mask_reaches_no_gradient() -> None:
    mask = torch.tensor([[True, True, False]])
    for function in (masked_sum, masked_mean, masked_var):
        x = torch.tensor([[1.0, 3.0, torch.nan]], requires_grad=True)
        slopes = gradient(function(x, mask), x)
        assert slopes.isfinite().all()
        assert slopes[0, 2] == 0.0


def test_the_gradient_of_the_mean_is_one_over_the_count() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert gradient(masked_mean(x, mask), x).tolist() == [[0.25, 0.25, 0.0], [0.0, 0.25, 0.25]]


def test_the_gradient_of_the_variance_is_that_of_finite_differences() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    x = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: masked_var(y, mask), (x,))
