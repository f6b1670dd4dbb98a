"""The divergence from a teacher is the paper's and TRL's, and its slope is its derivative."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orbiter.train.rl.distillation import generalized_jsd, generalized_jsd_slope
from orbiter.train.rl.kl import kl_k1

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "distillation.json").read_text(encoding="utf-8")
)
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
betas = st.sampled_from(BETAS)
logits = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


def log_softmax(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).log_softmax(-1)


def by_hand(student: list[float], teacher: list[float], beta: float) -> float:
    """Equation 1 of the paper, with the two KLs at its ends."""

    def softmax(z: list[float]) -> list[float]:
        mass = [math.exp(each) for each in z]
        return [each / math.fsum(mass) for each in mass]

    def kl(p: list[float], q: list[float]) -> float:
        return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    p, q = softmax(student), softmax(teacher)
    if beta in (0.0, 1.0):
        return kl(p, q) if beta else kl(q, p)
    m = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


@given(logits, logits, betas)
def test_the_divergence_is_the_papers_in_plain_floats(
    student: list[float], teacher: list[float], beta: float
) -> None:
    got = generalized_jsd(log_softmax(student), log_softmax(teacher), beta=beta)
    assert float(got) == pytest.approx(by_hand(student, teacher, beta), rel=1e-9, abs=1e-12)


@given(logits, logits, betas)
def test_the_slope_is_the_derivative_by_the_logits(
    student: list[float], teacher: list[float], beta: float
) -> None:
    z = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    generalized_jsd(z.log_softmax(-1), log_softmax(teacher), beta=beta).backward()
    got = generalized_jsd_slope(log_softmax(student), log_softmax(teacher), beta=beta)
    assert z.grad is not None
    torch.testing.assert_close(got, z.grad, rtol=1e-9, atol=1e-12)


@given(logits, logits, betas)
def test_it_is_never_negative_and_its_slope_sums_to_zero(
    student: list[float], teacher: list[float], beta: float
) -> None:
    p, q = log_softmax(student), log_softmax(teacher)
    assert float(generalized_jsd(p, q, beta=beta)) >= -1e-14
    assert float(generalized_jsd_slope(p, q, beta=beta).sum()) == pytest.approx(0, abs=1e-12)


@given(logits, logits, betas)
def test_swapping_the_models_is_swapping_the_ends(
    student: list[float], teacher: list[float], beta: float
) -> None:
    p, q = log_softmax(student), log_softmax(teacher)
    there = float(generalized_jsd(p, q, beta=beta))
    assert float(generalized_jsd(q, p, beta=1 - beta)) == pytest.approx(there, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_distributions_have_no_divergence_and_no_slope(beta: float) -> None:
    p = log_softmax([1.0, -2.0, 0.5, 3.0])
    assert float(generalized_jsd(p, p, beta=beta)) == pytest.approx(0, abs=1e-15)
    assert float(generalized_jsd_slope(p, p, beta=beta).abs().max()) < 1e-15


@pytest.mark.parametrize(("beta", "end"), [(1e-6, 0.0), (1 - 1e-6, 1.0)])
def test_near_an_end_the_divergence_is_that_kl_times_the_distance_to_the_end(
    beta: float, end: float
) -> None:
    p, q = log_softmax([1.0, -2.0, 0.5, 3.0]), log_softmax([0.0, 1.0, 0.5, -1.0])
    scaled = float(generalized_jsd(p, q, beta=beta)) / abs(beta - end)
    assert scaled == pytest.approx(float(generalized_jsd(p, q, beta=end)), rel=1e-4)


@pytest.mark.parametrize("beta", BETAS[1:-1])
def test_a_token_that_is_impossible_for_one_or_both_is_no_nan(beta: float) -> None:
    p = log_softmax([1.0, -math.inf, 0.5, -math.inf])
    q = log_softmax([0.0, 1.0, -math.inf, -math.inf])
    assert math.isfinite(float(generalized_jsd(p, q, beta=beta)))
    assert bool(generalized_jsd_slope(p, q, beta=beta).isfinite().all())


@pytest.mark.parametrize("batch", GOLDEN["batches"], ids=range(len(GOLDEN["batches"])))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", BETAS)
def test_loss_and_gradient_are_trls(batch: dict[str, Any], beta: float, temperature: float) -> None:
    mask = torch.tensor(batch["inputs"]["mask"])
    p, q = (
        (torch.tensor(batch["inputs"][name], dtype=torch.float64) / temperature).log_softmax(-1)
        for name in ("student", "teacher")
    )
    want = batch["losses"][f"{beta}/{temperature}"]
    loss = generalized_jsd(p, q, beta=beta)[mask].mean()
    slope = generalized_jsd_slope(p, q, beta=beta) * mask[..., None] / mask.sum() / temperature
    assert float(loss) == pytest.approx(want["loss"], rel=1e-9)
    torch.testing.assert_close(
        slope, torch.tensor(want["gradient"], dtype=torch.float64), rtol=1e-7, atol=1e-11
    )


def test_the_expected_gradient_of_sampled_tokens_is_that_of_the_reverse_kl() -> None:
    draw = random.Random(0)
    z = torch.tensor(
        [draw.uniform(-2, 2) for _ in range(6)], dtype=torch.float64, requires_grad=True
    )
    p, q = z.log_softmax(-1), log_softmax([draw.uniform(-2, 2) for _ in range(6)])
    # Every token once, weighted by its probability: what sampling gives on average.
    advantage = -kl_k1(p.detach()[None], q[None], torch.ones(1, 6, dtype=torch.bool))[0]
    (sampled,) = torch.autograd.grad(-(p.detach().exp() * advantage * p).sum(), z)
    exact = generalized_jsd_slope(p.detach(), q, beta=1.0)
    torch.testing.assert_close(sampled, exact, rtol=1e-12, atol=1e-14)
