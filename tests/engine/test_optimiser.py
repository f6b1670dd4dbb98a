"""The optimiser is AdamW, and its state is a dictionary of named tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import DataError, TrainingError

MakePolicy = Callable[..., Policy]


def fill_gradients(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.named_trainable().values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_a_resumed_optimiser_takes_bit_identical_steps(policy_of: MakePolicy) -> None:
    straight = policy_of(value_head=True)
    optimiser = make_optimiser(straight, learning_rate=1e-2)
    for seed in (0, 1):
        fill_gradients(straight, seed)
        optimiser.step(max_grad_norm=1.0)
    saved = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    weights = {n: p.detach().clone() for n, p in straight.named_trainable().items()}
    resumed = policy_of(value_head=True)
    resumed.load_trainable(weights)
    again = make_optimiser(resumed, learning_rate=1e-2)
    again.load_state(saved)
    for policy, its_optimiser in ((straight, optimiser), (resumed, again)):
        fill_gradients(policy, 2)
        its_optimiser.step(max_grad_norm=1.0)
    after = resumed.named_trainable()
    assert all(torch.equal(p, after[n]) for n, p in straight.named_trainable().items())


def test_gradients_are_clipped_together_and_the_norm_before_is_told(policy_of: MakePolicy) -> None:
    policy, unclipped = policy_of(), policy_of()
    fill_gradients(policy, 0)
    norm = float(
        torch.nn.utils.get_total_norm(
            [p.grad for p in policy.named_trainable().values() if p.grad is not None]
        )
    )
    told = make_optimiser(policy, learning_rate=1e-2).step(max_grad_norm=0.5)
    assert told == pytest.approx(norm, rel=1e-5)
    for parameter in unclipped.named_trainable().values():
        parameter.grad = None
    fill_gradients(unclipped, 0)
    parameters = list(unclipped.named_trainable().values())
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0).step()
    mine = policy.named_trainable()
    for name, parameter in unclipped.named_trainable().items():
        torch.testing.assert_close(mine[name], parameter)


def test_a_gradient_that_is_not_finite_changes_nothing(policy_of: MakePolicy) -> None:
    policy = policy_of()
    before = {n: p.detach().clone() for n, p in policy.named_trainable().items()}
    fill_gradients(policy, 0)
    first = next(iter(policy.named_trainable().values()))
    assert first.grad is not None
    first.grad.view(-1)[0] = float("inf")
    with pytest.raises(TrainingError, match="not finite"):
        make_optimiser(policy, learning_rate=1e-2).step(max_grad_norm=1.0)
    assert all(torch.equal(before[n], p) for n, p in policy.named_trainable().items())


def test_the_learning_rate_can_be_set_between_steps(policy_of: MakePolicy) -> None:
    optimiser = make_optimiser(policy_of(), learning_rate=1e-2)
    optimiser.learning_rate = 5e-4
    assert optimiser.learning_rate == 5e-4


def test_a_foreign_state_is_refused(policy_of: MakePolicy) -> None:
    optimiser = make_optimiser(policy_of(), learning_rate=1e-2)
    with pytest.raises(DataError, match=r"nobody\.exp_avg"):
        optimiser.load_state({"nobody.exp_avg": torch.zeros(1)})
