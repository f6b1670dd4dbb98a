"""A policy trains what it says it trains, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from orbiter.train.engine.policy import Policy
from orbiter.train.errors import ConfigError, DataError

MakePolicy = Callable[..., Policy]


def test_full_fine_tuning_trains_every_weight(policy_of: MakePolicy) -> None:
    policy = policy_of()
    assert set(policy.named_trainable()) == {n for n, _ in policy.model.named_parameters()}
    assert not policy.adapted


def test_lora_trains_adapters_on_every_linear_layer_of_the_body(policy_of: MakePolicy) -> None:
    policy = policy_of(lora_rank=4)
    names = list(policy.named_trainable())
    assert len(names) == 2 * 7 * 2
    assert all("lora_" in name for name in names)
    assert policy.adapted


def test_adapters_are_drawn_from_the_seed_and_leave_the_global_one_alone(
    policy_of: MakePolicy,
) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        torch.cat([p.flatten() for p in policy_of(lora_rank=4, seed=s).named_trainable().values()])
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_the_value_head_starts_at_zero_and_is_trained(policy_of: MakePolicy) -> None:
    policy = policy_of(value_head=True)
    named = policy.named_trainable()
    assert float(named["value_head.weight"].detach().abs().max()) == 0.0
    assert named["value_head.bias"].requires_grad


def test_saved_weights_go_back_in_place_and_strangers_are_refused(policy_of: MakePolicy) -> None:
    policy, other = policy_of(value_head=True), policy_of("llama", value_head=True)
    saved = {n: torch.full_like(p, 0.5) for n, p in policy.named_trainable().items()}
    held = other.named_trainable()
    other.load_trainable(saved)
    assert all(torch.equal(held[n], t) for n, t in saved.items())
    with pytest.raises(DataError, match="tensors on one side only"):
        other.load_trainable({n: t for n, t in saved.items() if n != "value_head.bias"})
    with pytest.raises(DataError, match=r"value_head\.bias has shape \(2,\)"):
        other.load_trainable(saved | {"value_head.bias": torch.zeros(2)})


def test_an_unknown_arithmetic_is_refused(policy_of: MakePolicy) -> None:
    with pytest.raises(ConfigError, match="float16"):
        policy_of(dtype="float16")


def test_master_weights_stay_in_float32(policy_of: MakePolicy) -> None:
    policy = policy_of(dtype="bfloat16")
    assert {p.dtype for p in policy.named_trainable().values()} == {torch.float32}
