"""Our numbers against verl's and TRL's own, written down by golden/make_goldens.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train.rl import (
    clipped_surrogate,
    clipped_value_loss,
    entropy,
    gae,
    group_relative_advantage,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    masked_var,
    whiten,
)
from orbiter.train.rl.loss import aggregate

GOLDEN = Path(__file__).parent / "golden"
MAX_LENGTH = 12
PEER_EPS = 1e-8
"""The peers add this to some denominators; nothing here is compared more loosely."""

verl: dict[str, Any] = json.loads((GOLDEN / "verl.json").read_text(encoding="utf-8"))
trl: dict[str, Any] = json.loads((GOLDEN / "trl.json").read_text(encoding="utf-8"))
verl_batches = pytest.mark.parametrize("golden", verl["batches"], ids=range(3))
trl_batches = pytest.mark.parametrize("golden", trl["batches"], ids=range(3))


def tensor(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def close(got: Tensor, want: object) -> None:
    torch.testing.assert_close(got.detach(), tensor(want), rtol=PEER_EPS, atol=PEER_EPS / 10)


class Streams:
    """A golden batch's inputs as tensors; the two that are trained have a gradient."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.mask = torch.tensor(inputs["mask"])
        self.logprob = tensor(inputs["logprob"]).requires_grad_()
        self.old_logprob = tensor(inputs["old_logprob"])
        self.ref_logprob = tensor(inputs["ref_logprob"])
        self.advantage = tensor(inputs["advantage"])
        self.value = tensor(inputs["value"]).requires_grad_()
        self.old_value = tensor(inputs["old_value"])
        self.return_ = tensor(inputs["return_"])
        self.reward = tensor(inputs["reward"])
        self.logits = tensor(inputs["logits"])


def close_with_gradient(loss: Tensor, leaf: Tensor, want: dict[str, Any]) -> None:
    close(loss, want["loss"])
    (gradient,) = torch.autograd.grad(loss, leaf)
    close(gradient, want["gradient"])


@verl_batches
def test_the_policy_loss_and_its_gradient_are_verls(golden: dict[str, Any]) -> None:
    for name, want in golden["policy"].items():
        x = Streams(golden["inputs"])
        ratio, aggregation = name.split("/")
        got = clipped_surrogate(
            x.logprob, x.old_logprob, x.advantage, x.mask, clip_range=0.2, clip_range_high=0.28,
            ratio=ratio, aggregation=aggregation, max_length=MAX_LENGTH,
        )  # fmt: skip
        close_with_gradient(got.loss, x.logprob, want)
        # verl counts the clip in float32.
        assert got.clip_fraction.item() == pytest.approx(want["clip_fraction"], rel=1e-6)
    assert len(golden["policy"]) == 6


@trl_batches
def test_the_policy_loss_and_its_gradient_are_trls(golden: dict[str, Any]) -> None:
    for name, want in golden["policy"].items():
        x = Streams(golden["inputs"])
        loss_type, ratio, aggregation = name.split("/")
        advantage = x.advantage if ratio == "token" else x.advantage[:, :1].expand(x.mask.shape)
        loss = clipped_surrogate(
            x.logprob, x.old_logprob, advantage, x.mask, clip_range=0.2, clip_range_high=0.28,
            ratio=ratio, aggregation=aggregation, max_length=MAX_LENGTH,
        ).loss  # fmt: skip
        if loss_type == "grpo+k3":
            penalty = kl_k3(x.logprob, x.ref_logprob, x.mask)
            loss = loss + 0.04 * aggregate(penalty, x.mask, aggregation=aggregation)
        close_with_gradient(loss, x.logprob, want)
    assert len(golden["policy"]) == 9


@verl_batches
def test_the_value_loss_and_its_gradient_are_verls(golden: dict[str, Any]) -> None:
    x = Streams(golden["inputs"])
    got = clipped_value_loss(x.value, x.old_value, x.return_, x.mask, clip_range=0.2)
    close_with_gradient(got.loss, x.value, golden["value"])
    assert got.clip_fraction.item() == pytest.approx(golden["value"]["clip_fraction"], rel=1e-6)


@verl_batches
def test_gae_is_verls_over_padding_and_tool_answers_alike(golden: dict[str, Any]) -> None:
    x = Streams(golden["inputs"])
    got = gae(x.reward, x.old_value, x.mask, gamma=0.97, gae_lambda=0.9)
    close(whiten(got.advantage, x.mask), golden["gae"]["whitened"])
    close(got.return_, golden["gae"]["return_"])


@verl_batches
def test_the_kl_estimates_are_verls(golden: dict[str, Any]) -> None:
    x = Streams(golden["inputs"])
    everywhere = torch.ones_like(x.mask)
    for name, estimate in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)):
        close(estimate(x.logprob, x.ref_logprob, everywhere), golden["kl"][name])


@verl_batches
def test_entropy_whitening_mean_and_variance_are_verls(golden: dict[str, Any]) -> None:
    x = Streams(golden["inputs"])
    close(entropy(x.logits), golden["entropy"])
    close(whiten(x.reward, x.mask), golden["whiten"])
    close(masked_mean(x.reward, x.mask), golden["masked_mean"])
    close(masked_var(x.reward, x.mask), golden["masked_var"])


def test_the_group_advantage_is_verls_to_the_last_digits() -> None:
    reward = tensor(verl["rewards"])
    for scale in ("std", "none"):
        got = group_relative_advantage(reward, scale=scale)
        torch.testing.assert_close(got, tensor(verl["grpo"][scale]), rtol=1e-12, atol=1e-12)
    assert verl["grpo"]["std"][0][0] == pytest.approx(-0.9933984783, abs=1e-10)


def test_the_group_standard_deviation_is_trls() -> None:
    reward = tensor(trl["rewards"])
    mask = torch.ones_like(reward, dtype=torch.bool)
    got = masked_var(reward, mask, dim=-1).sqrt()
    # TRL corrects for n - 1 in float32.
    torch.testing.assert_close(got, tensor(trl["group_std"]), rtol=1e-7, atol=1e-7)
