"""GSPO, CISPO, SAPO and RLOO against the numbers of verl 0.9.1, and by their own properties."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train.rl.cispo import cispo_loss
from orbiter.train.rl.loss import Aggregation, clipped_surrogate
from orbiter.train.rl.rloo import leave_one_out_advantage
from orbiter.train.rl.sapo import sapo_loss

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "verl_losses.json").read_text(encoding="utf-8")
)
LOSSES = {
    "gspo": partial(clipped_surrogate, clip_range=0.2, clip_range_high=0.28, ratio="sequence"),
    "cispo": partial(cispo_loss, clip_range=0.2, clip_range_high=0.28),
    "sapo": partial(sapo_loss, tau_positive=1.0, tau_negative=1.05),
}
AGGREGATIONS: dict[str, Aggregation] = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence",
    "seq-mean-token-sum-norm": "constant",
}


def tensor(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("batch", GOLDEN["batches"], ids=range(3))
@pytest.mark.parametrize(
    ("name", "theirs"),
    [(n, a) for n in LOSSES for a in AGGREGATIONS if n != "sapo" or a == "seq-mean-token-mean"],
)
def test_loss_and_gradient_are_verls(batch: dict[str, Any], theirs: str, name: str) -> None:
    inputs = batch["inputs"]
    logprob = tensor(inputs["logprob"]).requires_grad_()
    scored = LOSSES[name](
        logprob,
        tensor(inputs["old_logprob"]),
        tensor(inputs["advantage"]),
        torch.tensor(inputs["mask"]),
        aggregation=AGGREGATIONS[theirs],
        max_length=12,
    )
    (gradient,) = torch.autograd.grad(scored.loss, logprob)
    want = batch["losses"][f"{name}/{theirs}"]
    torch.testing.assert_close(scored.loss.detach(), tensor(want["loss"]), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradient, tensor(want["gradient"]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_loss_has_the_gradient_of_reinforce(name: str) -> None:
    inputs = GOLDEN["batches"][0]["inputs"]
    logprob = tensor(inputs["logprob"]).requires_grad_()
    mask, advantage = torch.tensor(inputs["mask"]), tensor(inputs["advantage"])
    scored = LOSSES[name](logprob, logprob.detach(), advantage, mask)
    (gradient,) = torch.autograd.grad(scored.loss, logprob)
    torch.testing.assert_close(gradient, -advantage * mask / mask.sum())
    assert scored.clip_fraction == 0


@pytest.mark.parametrize("name", LOSSES)
def test_what_lies_outside_the_mask_reaches_nothing(name: str) -> None:
    inputs = GOLDEN["batches"][1]["inputs"]
    mask = torch.tensor(inputs["mask"])
    streams = [tensor(inputs[key]) for key in ("logprob", "old_logprob", "advantage")]
    broken = [stream.masked_fill(~mask, torch.nan).requires_grad_() for stream in streams]
    clean, dirty = LOSSES[name](*streams, mask), LOSSES[name](*broken, mask)
    assert dirty.loss.item() == clean.loss.item()
    (gradient,) = torch.autograd.grad(dirty.loss, broken[0])
    assert torch.isfinite(gradient).all()


def test_the_leave_one_out_advantage_is_verls_and_that_of_plain_floats() -> None:
    reward = tensor(GOLDEN["rloo"]["reward"])
    advantage = leave_one_out_advantage(reward)
    torch.testing.assert_close(advantage, tensor(GOLDEN["rloo"]["advantage"]), rtol=0, atol=1e-12)
    for group, row in zip(reward.tolist(), advantage.tolist(), strict=True):
        for at, got in enumerate(row):
            others = group[:at] + group[at + 1 :]
            assert got == pytest.approx(group[at] - sum(others) / len(others))


def test_a_skipped_response_counts_in_no_mean() -> None:
    valid = torch.tensor([[True, False, True], [True, False, False]])
    advantage = leave_one_out_advantage(tensor([[1.0, 99.0, 3.0], [5.0, 9.0, 7.0]]), valid=valid)
    assert advantage.tolist() == [[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
