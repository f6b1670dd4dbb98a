"""The chunked head says and slopes what plain autograd over full logits does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orbiter.train.engine.forward import head
from orbiter.train.engine.forward.head import scores_of_logits, token_scores


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(11, (7,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_scores_and_gradients_are_those_of_full_logits(
    monkeypatch: pytest.MonkeyPatch, temperature: float, chunk_rows: int
) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 11 * chunk_rows)
    hidden, weight, token_ids = case()
    ours = token_scores(hidden, weight, token_ids, temperature=temperature)
    plain = scores_of_logits(hidden @ weight.t(), token_ids, temperature=temperature)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    slope, tilt = torch.linspace(-1, 2, 7), torch.linspace(3, -1, 7)
    losses = [(s.logprob * slope + s.entropy * tilt).sum() for s in (ours, plain)]
    mine, theirs = (torch.autograd.grad(loss, (hidden, weight)) for loss in losses)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_without_an_entropy_term_the_slope_is_one_hot_minus_softmax() -> None:
    hidden, weight, token_ids = case()
    token_scores(hidden, weight, token_ids).logprob.sum().backward()
    slope = torch.nn.functional.one_hot(token_ids, 11) - (hidden @ weight.t()).softmax(-1)
    torch.testing.assert_close(hidden.grad, (slope @ weight).detach(), rtol=1e-9, atol=1e-12)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, token_ids = case()
    token_scores(hidden, weight.detach(), token_ids).logprob.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
