"""Each loss against plain floats, its invariances, TRL's own numbers, and its gradient."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orbiter.train.preference.methods import (
    Answers,
    PairLoss,
    dpo_loss,
    ipo_loss,
    kl_estimate,
    kto_loss,
    orpo_loss,
    simpo_loss,
)
from tests.preference import by_hand
from tests.preference.by_hand import Two

GOLDEN = json.loads((Path(__file__).parent / "golden" / "trl.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-5
batches = pytest.mark.parametrize("golden", GOLDEN["batches"], ids=range(3))

two = st.tuples(st.floats(-60, -0.5), st.floats(-60, -0.5))
counts = st.tuples(st.integers(1, 40), st.integers(1, 40))
beta = st.floats(0.01, 5)


def answers(logprob: float, tokens: int, ref: float = 0.0) -> Answers:
    as_tensor = [torch.tensor([x], dtype=torch.float64) for x in (logprob, ref)]
    return Answers(as_tensor[0], torch.tensor([tokens]), as_tensor[1])


@given(two, two, beta, st.floats(0, 0.49))
def test_dpo_is_the_papers(pi: Two, ref: Two, beta: float, eps: float) -> None:
    chosen, rejected = answers(pi[0], 3, ref[0]), answers(pi[1], 5, ref[1])
    got = dpo_loss(chosen, rejected, beta=beta, label_smoothing=eps)
    assert got.loss.item() == pytest.approx(by_hand.dpo(pi, ref, beta, eps), rel=1e-9, abs=1e-12)
    assert got.chosen_reward.item() == pytest.approx(beta * (pi[0] - ref[0]), abs=1e-9)
    assert got.rejected_reward.item() == pytest.approx(beta * (pi[1] - ref[1]), abs=1e-9)


@given(two, two, counts, beta)
def test_ipo_is_the_papers_per_token(
    pi: Two, ref: Two, tokens: tuple[int, int], tau: float
) -> None:
    got = ipo_loss(answers(pi[0], tokens[0], ref[0]), answers(pi[1], tokens[1], ref[1]), beta=tau)
    want = by_hand.ipo(pi, ref, tokens, tau)
    assert got.loss.item() == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert got.chosen_reward.item() == pytest.approx(tau * (pi[0] - ref[0]) / tokens[0], abs=1e-9)


@given(two, st.booleans(), st.floats(-20, 20), beta, st.floats(0.1, 3))
def test_kto_is_the_papers(
    pi_and_ref: Two, good: bool, z: float, beta: float, weight: float
) -> None:
    pi, ref = pi_and_ref
    got = kto_loss(
        answers(pi, 4, ref), torch.tensor([good]), torch.tensor(z, dtype=torch.float64),
        beta=beta, desirable_weight=weight if good else 9.0,
        undesirable_weight=9.0 if good else weight,
    )  # fmt: skip
    want = by_hand.kto(pi - ref, good, z, beta, weight)
    assert got.loss.item() == pytest.approx(want, rel=1e-9, abs=1e-12)


@given(two, counts, st.floats(0.01, 5))
def test_orpo_is_the_papers(pi: Two, tokens: tuple[int, int], weight: float) -> None:
    got = orpo_loss(answers(pi[0], tokens[0]), answers(pi[1], tokens[1]), beta=weight)
    want = by_hand.orpo(pi, tokens, weight)
    assert got.loss.item() == pytest.approx(want, rel=1e-7, abs=1e-9)


@given(two, counts, beta, st.floats(0, 3))
def test_simpo_is_the_papers(pi: Two, tokens: tuple[int, int], beta: float, gamma: float) -> None:
    got = simpo_loss(answers(pi[0], tokens[0]), answers(pi[1], tokens[1]), beta=beta, gamma=gamma)
    want = by_hand.simpo(pi, tokens, beta, gamma)
    assert got.loss.item() == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert got.chosen_reward.item() == pytest.approx(beta * pi[0] / tokens[0], abs=1e-9)


PAIRED: dict[str, Callable[[Answers, Answers], PairLoss]] = {
    "dpo": lambda c, r: dpo_loss(c, r, beta=0.3),
    "smoothed": lambda c, r: dpo_loss(c, r, beta=0.3, label_smoothing=0.1),
    "ipo": lambda c, r: ipo_loss(c, r, beta=0.3),
    "orpo": lambda c, r: orpo_loss(c, r, beta=0.3),
    "simpo": lambda c, r: simpo_loss(c, r, beta=2.0, gamma=0.5),
}


@pytest.mark.parametrize("name", PAIRED)
def test_a_small_step_down_the_gradient_widens_the_margin(name: str) -> None:
    chosen = torch.tensor([-12.0, -30.0, -7.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-11.0, -9.0, -8.5], dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([4, 9, 3])
    ref = torch.tensor([-12.0, -29.0, -8.0], dtype=torch.float64)
    got = PAIRED[name](Answers(chosen, tokens, ref), Answers(rejected, tokens, ref - 1))
    up, down = torch.autograd.grad(got.loss.sum(), (chosen, rejected))
    assert bool((up < 0).all()), "the better answer becomes likelier"
    assert bool((down > 0).all()), "the worse answer becomes less likely"


@pytest.mark.parametrize("name", PAIRED)
def test_the_gradient_is_that_of_the_loss(name: str) -> None:
    tokens = torch.tensor([4, 9])
    ref = torch.tensor([-12.0, -29.0], dtype=torch.float64)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return PAIRED[name](
            Answers(chosen, tokens, ref), Answers(rejected, tokens.flip(0), ref + 1)
        ).loss

    given_at = [
        torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
        for numbers in ([-12.5, -30.0], [-11.0, -28.0])
    ]
    assert torch.autograd.gradcheck(loss, given_at)


def test_the_gradient_of_kto_is_that_of_its_loss_and_none_reaches_the_reference_point() -> None:
    good = torch.tensor([True, False])
    ref = torch.tensor([-12.0, -29.0], dtype=torch.float64)
    kl = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(logprob: Tensor) -> Tensor:
        return kto_loss(Answers(logprob, torch.tensor([3, 4]), ref), good, kl, beta=0.3).loss

    logprob = torch.tensor([-12.5, -30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, logprob)
    up, down = torch.autograd.grad(loss(logprob).sum(), logprob)[0]
    assert up < 0 < down
    (of_kl,) = torch.autograd.grad(loss(logprob).sum(), kl, allow_unused=True)
    assert of_kl is None


@pytest.mark.parametrize("name", [*PAIRED, "kto"])
def test_rewards_have_no_gradient_so_metrics_keep_no_graph_in_memory(name: str) -> None:
    logprob = torch.tensor([-12.5, -30.0], requires_grad=True)
    every = Answers(logprob, torch.tensor([3, 4]), torch.tensor([-12.0, -29.0]))
    of_kto = kto_loss(every, torch.tensor([True, False]), torch.tensor(0.7), beta=0.3)
    loss, *rewards = of_kto if name == "kto" else PAIRED[name](every, every)
    assert loss.requires_grad
    assert len(rewards) == (1 if name == "kto" else 2)
    assert not any(reward.requires_grad for reward in rewards)


@pytest.mark.parametrize("name", ["dpo", "smoothed", "ipo"])
def test_only_the_ratio_to_the_reference_counts(name: str) -> None:
    one = PAIRED[name](answers(-12.0, 4, -10.0), answers(-9.0, 4, -11.0))
    moved = PAIRED[name](answers(-17.0, 4, -15.0), answers(-3.0, 4, -5.0))
    assert one.loss.item() == pytest.approx(moved.loss.item(), rel=1e-12)


def test_an_almost_certain_answer_has_finite_odds_and_gradient() -> None:
    certain = torch.tensor([0.0, -1e-30, -500.0], requires_grad=True)
    tokens = torch.tensor([1, 3, 1])
    blank = torch.zeros(3)
    got = orpo_loss(Answers(certain, tokens, blank), Answers(certain - 1, tokens, blank), beta=1.0)
    assert bool(torch.isfinite(got.loss).all())
    (gradient,) = torch.autograd.grad(got.loss.sum(), certain)
    assert bool(torch.isfinite(gradient).all())


class Batch:
    """A golden batch's inputs as answers; the policy's tokens have a gradient."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.mask = torch.tensor(inputs["mask"])
        self.logprob = torch.tensor(inputs["logprob"], dtype=torch.float64).requires_grad_()
        ref = torch.tensor(inputs["ref_logprob"], dtype=torch.float64)
        self.every = Answers(
            (self.logprob * self.mask).sum(-1), self.mask.sum(-1), (ref * self.mask).sum(-1)
        )
        half = len(self.mask) // 2
        self.chosen = Answers(*(each[:half] for each in self.every))
        self.rejected = Answers(*(each[half:] for each in self.every))

    def check(self, loss: Tensor, want: dict[str, Any]) -> None:
        assert loss.item() == pytest.approx(want["loss"], abs=TOLERANCE)
        (gradient,) = torch.autograd.grad(loss, self.logprob)
        wanted = torch.tensor(want["gradient"], dtype=torch.float64)
        torch.testing.assert_close(gradient, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        assert float(wanted.abs().max()) > 100 * TOLERANCE


@batches
def test_dpo_ipo_and_simpo_and_their_gradients_are_trls(golden: dict[str, Any]) -> None:
    losses: dict[str, Callable[[Answers, Answers], PairLoss]] = {
        "dpo": lambda c, r: dpo_loss(c, r, beta=0.1),
        "ipo": lambda c, r: ipo_loss(c, r, beta=0.1),
        "simpo": lambda c, r: simpo_loss(c, r, beta=2.0, gamma=0.5),
        "smoothed": lambda c, r: dpo_loss(c, r, beta=2.0, label_smoothing=0.1),
    }
    for name, loss in losses.items():
        x = Batch(golden["inputs"])
        x.check(loss(x.chosen, x.rejected).loss.mean(), golden["losses"][name])


@batches
def test_the_odds_ratio_term_and_its_gradient_are_trls(golden: dict[str, Any]) -> None:
    x = Batch(golden["inputs"])
    whole = orpo_loss(x.chosen, x.rejected, beta=0.1).loss
    x.check((whole + x.chosen.mean_logprob).mean(), golden["losses"]["orpo"])


@batches
def test_kto_and_its_gradient_and_reference_point_are_trls(golden: dict[str, Any]) -> None:
    inputs, want = golden["inputs"], golden["losses"]["kto"]
    x = Batch(inputs)
    mismatched = Answers(
        torch.tensor(inputs["mismatched"], dtype=torch.float64),
        torch.ones(len(x.mask)),
        torch.tensor(inputs["ref_mismatched"], dtype=torch.float64),
    )
    kl = kl_estimate(mismatched)
    assert float(kl.clamp(min=0)) == pytest.approx(want["kl"], abs=TOLERANCE)
    loss = kto_loss(
        x.every, torch.tensor(inputs["desirable"]), kl,
        beta=0.1, desirable_weight=1.2, undesirable_weight=0.7,
    ).loss  # fmt: skip
    x.check(loss.mean(), want)


def test_the_goldens_have_a_reference_point_above_zero() -> None:
    assert max(golden["losses"]["kto"]["kl"] for golden in GOLDEN["batches"]) > 0.1
    assert GOLDEN["trl"] == "1.16.0"
