from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orbiter.train.rl import kl_k1, kl_k2, kl_k3
from tests.rl import by_hand
from tests.rl.batches import columns, gradient, mask_of, padded, ragged, rows_of

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
ESTIMATORS: dict[str, Estimator] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4)
every_estimator = pytest.mark.parametrize("kind", ["k1", "k2", "k3"])


@every_estimator
@given(seed=SEEDS, lengths=LENGTHS)
def test_each_token_is_the_formula(kind: str, seed: int, lengths: list[int]) -> None:
    places = columns(seed, lengths)
    logprob, ref = ragged(seed, "logprob", -5, 0, lengths), ragged(seed, "ref", -5, 0, lengths)
    got = ESTIMATORS[kind](padded(logprob, places), padded(ref, places), mask_of(places))
    for got_row, lp_row, ref_row in zip(rows_of(got, places), logprob, ref, strict=True):
        want = [by_hand.kl(lp, r, kind) for lp, r in zip(lp_row, ref_row, strict=True)]
        assert got_row == pytest.approx(want, rel=1e-12, abs=1e-14)
    assert (got[~mask_of(places)] == 0).all()


@every_estimator
def test_its_mean_under_the_policy_is_the_divergence_where_it_is_unbiased(kind: str) -> None:
    pi = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64)
    ref = torch.tensor([[0.45, 0.25, 0.2, 0.1]], dtype=torch.float64)
    truth = (pi * (pi / ref).log()).sum().item()
    every_token = ESTIMATORS[kind](pi.log(), ref.log(), torch.ones_like(pi, dtype=torch.bool))
    bias = 5e-2 if kind == "k2" else 1e-12
    assert (pi * every_token).sum().item() == pytest.approx(truth, rel=bias)


def test_k2_and_k3_are_never_negative_and_all_vanish_at_the_reference() -> None:
    logprob = torch.linspace(-8, 0, 50, dtype=torch.float64).reshape(5, 10)
    mask = torch.ones(5, 10, dtype=torch.bool)
    for kind, estimator in ESTIMATORS.items():
        assert (estimator(logprob, logprob.clone(), mask) == 0).all()
        if kind != "k1":
            assert (estimator(logprob, logprob.flip(0), mask) >= 0).all()


def test_k3_stays_exact_where_the_difference_is_tiny_in_float32() -> None:
    logprob, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.001]])
    got = kl_k3(logprob, ref, torch.tensor([[True]])).item()
    d = ref.item() - logprob.item()
    assert got == pytest.approx(math.expm1(d) - d, rel=1e-3)
    assert got > 0


@every_estimator
def test_the_gradient_is_the_derivative_and_ignores_nan_in_the_padding(kind: str) -> None:
    logprob = torch.tensor([[-0.5, -2.0, torch.nan]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-1.0, -1.0, torch.nan]], dtype=torch.float64)
    slopes = gradient(ESTIMATORS[kind](logprob, ref, torch.tensor([[True, True, False]])), logprob)
    d = [-0.5, 1.0]
    slope: dict[str, Callable[[float], float]] = {
        "k1": lambda _: 1.0,
        "k2": lambda x: -x,
        "k3": lambda x: 1 - math.exp(x),
    }
    want = [*(slope[kind](x) for x in d), 0.0]
    assert slopes[0].tolist() == pytest.approx(want, rel=1e-12)
