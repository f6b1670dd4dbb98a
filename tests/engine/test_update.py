"""A step moves what it should, the same however the batch is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.objective import ImitationObjective, PolicyObjective
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import given
from orbiter.train.engine.sample import sample
from orbiter.train.engine.update import (
    Objective,
    logprob,
    micro_batches,
    ref_logprob,
    score,
    update,
    value,
)
from orbiter.train.errors import DataError, StateError, TrainingError

MakePolicy = Callable[..., Policy]
PROMPTS = [list(b"hello there"), list(b"abc")]


def sampled(policy: Policy, advantage: list[float] | None = None, seed: int = 0) -> Batch:
    rollouts = sample(policy, PROMPTS, n=4, max_new_tokens=12, seed=seed)
    worth = torch.linspace(-1, 1.5, 8) if advantage is None else torch.tensor(advantage)
    return collate(rollouts, advantage=worth)


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_trainable().items()}


def step(policy: Policy, batch: Batch, objective: Objective) -> dict[str, float]:
    return update(policy, batch, make_optimiser(policy, learning_rate=1e-3), objective)


def linear_step(
    policy: Policy, batch: Batch, objective: Objective, *, micro_batch_tokens: int = 2048
) -> dict[str, float]:
    """With eps far above any gradient, AdamW's step is the gradient, and rounding stays small."""
    optimiser = make_optimiser(policy, learning_rate=1.0, eps=1.0)
    return update(policy, batch, optimiser, objective, micro_batch_tokens=micro_batch_tokens)


OBJECTIVES: dict[str, Objective] = {
    "token": PolicyObjective(),
    "sequence": PolicyObjective(aggregation="sequence"),
    "constant": PolicyObjective(aggregation="constant", max_length=12),
    "everything": PolicyObjective(kl_coef=0.1, vf_coef=0.5, clip_range_value=0.2, ent_coef=0.01),
    "imitation": ImitationObjective(),
}


@pytest.mark.parametrize("path", ["auto", "generic"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_size_of_micro_batches_changes_nothing(
    policy_of: MakePolicy, name: str, path: str
) -> None:
    seen = []
    for micro_batch_tokens in (1, 40, 10_000):
        policy = policy_of(path=path, value_head=True)
        batch = sampled(policy)
        zeros = torch.zeros_like(batch.sampled_logprob)
        batch = replace(
            batch, ref_logprob=batch.sampled_logprob - 0.3, old_value=zeros, return_=zeros + 1.0
        )
        metrics = linear_step(
            policy, batch, OBJECTIVES[name], micro_batch_tokens=micro_batch_tokens
        )
        seen.append((metrics, weights(policy)))
    for metrics, after in seen[1:]:
        assert metrics == pytest.approx(seen[0][0], abs=1e-5, rel=1e-4)
        worst = max(float((after[n] - w).abs().max()) for n, w in seen[0][1].items())
        assert worst < 1e-5


def test_a_sampler_that_differs_from_the_training_shows_in_the_metrics(
    policy_of: MakePolicy,
) -> None:
    for recomputed in (False, True):
        policy = policy_of("llama")
        batch = sampled(policy)
        old = batch.sampled_logprob if recomputed else None
        drifted = batch.sampled_logprob + 0.25 * batch.mask
        batch = replace(batch, sampled_logprob=drifted, old_logprob=old)
        metrics = step(policy, batch, PolicyObjective())
        assert metrics["sampler_gap"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.usefixtures("each_processor")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gpt2"])
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_grpo_and_a_ppo_step_start_at_ratio_one(
    policy_of: MakePolicy, family: str, lora_rank: int, dtype: str
) -> None:
    policy = policy_of(family, lora_rank=lora_rank, dtype=dtype, value_head=True)
    batch = sampled(policy)
    before = weights(policy)
    metrics = step(policy, batch, PolicyObjective())
    assert metrics["approx_kl"] == 0.0
    assert metrics["clip_fraction"] == 0.0
    assert any(not torch.equal(before[n], w) for n, w in weights(policy).items())
    batch = sampled(policy, seed=1)
    batch = replace(batch, old_value=value(policy, batch), return_=batch.mask * 1.0)
    if dtype == "float32":
        batch = replace(batch, old_logprob=batch.sampled_logprob)
        assert metrics["sampler_gap"] < 1e-4
    metrics = step(policy, batch, PolicyObjective(vf_coef=0.5, clip_range_value=0.2))
    assert metrics["approx_kl"] < 1e-9
    assert metrics["vf_loss"] == pytest.approx(0.5, rel=0.2)
    assert policy.value_head is not None
    assert float(policy.value_head.weight.detach().abs().max()) > 0


def test_the_step_raises_what_was_rewarded_and_lowers_the_rest(policy_of: MakePolicy) -> None:
    policy = policy_of()
    batch = sampled(policy, advantage=[1.0, -1.0] * 4)
    before = logprob(policy, batch)
    step(policy, batch, PolicyObjective())
    change = (logprob(policy, batch) - before).sum(dim=-1)
    assert float(change[0::2].sum()) > 0 > float(change[1::2].sum())


def test_rows_without_advantage_are_not_computed_and_change_nothing(policy_of: MakePolicy) -> None:
    after = []
    for objective in (PolicyObjective(), NeverIdle()):
        policy = policy_of()
        batch = sampled(policy, advantage=[0.0] * 4 + [1.0, -1.0, 2.0, 0.0])
        linear_step(policy, batch, objective)
        after.append(weights(policy))
    for name, weight in after[0].items():
        torch.testing.assert_close(weight, after[1][name], atol=1e-5, rtol=0)
    policy = policy_of()
    before = weights(policy)
    metrics = step(policy, sampled(policy, advantage=[0.0] * 8), PolicyObjective())
    assert metrics["grad_norm"] == metrics["loss"] == 0.0
    assert all(torch.equal(before[n], w) for n, w in weights(policy).items())


class NeverIdle(PolicyObjective):
    """The same objective, without leaving rows out."""

    def idle(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.length, dtype=torch.bool)


def test_padding_never_reaches_the_gradient(policy_of: MakePolicy) -> None:
    after = []
    for junk in (0, 99):
        policy = policy_of()
        batch = sampled(policy)
        padding = torch.arange(batch.mask.shape[1]) >= batch.length[:, None]
        assert bool(padding.any())
        batch = replace(batch, token_ids=batch.token_ids.masked_fill(padding, junk))
        step(policy, batch, PolicyObjective())
        after.append(weights(policy))
    assert all(torch.equal(w, after[1][n]) for n, w in after[0].items())


@pytest.mark.parametrize("knobs", [{"lora_rank": 4}, {"reference": True}])
def test_the_reference_stays_where_the_policy_started(
    policy_of: MakePolicy, knobs: dict[str, Any]
) -> None:
    policy = policy_of(**knobs)
    batch = sampled(policy)
    start = logprob(policy, batch)
    for _ in range(3):
        step(policy, batch, PolicyObjective())
    torch.testing.assert_close(ref_logprob(policy, batch), start, atol=1e-5, rtol=0)
    assert float((logprob(policy, batch) - start).abs().max()) > 1e-3


def test_what_is_not_there_is_named(policy_of: MakePolicy) -> None:
    policy = policy_of()
    batch = sampled(policy)
    with pytest.raises(StateError, match="value_head=True"):
        value(policy, batch)
    with pytest.raises(StateError, match="reference=True"):
        ref_logprob(policy, batch)
    with pytest.raises(StateError, match="needs advantage"):
        step(policy, replace(batch, advantage=None), PolicyObjective())
    with pytest.raises(DataError, match="no token to train on"):
        step(policy, replace(batch, mask=batch.mask & False), PolicyObjective())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    policy_of: MakePolicy, broken: float
) -> None:
    policy = policy_of()
    batch = sampled(policy)
    before = weights(policy)
    assert batch.advantage is not None
    batch.advantage[0, int(batch.prompt_length[0])] = broken
    with pytest.raises(TrainingError, match=r"diverged|not finite"):
        step(policy, batch, PolicyObjective())
    assert all(torch.equal(before[n], w) for n, w in weights(policy).items())


def test_values_are_those_of_the_state_before_each_token(policy_of: MakePolicy) -> None:
    policy = policy_of(value_head=True)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    batch = sampled(policy)
    seen = score(policy, batch).value
    assert seen is not None
    torch.testing.assert_close(value(policy, batch), seen, atol=1e-5, rtol=0)
    states = policy.model.model(batch.token_ids, use_cache=False).last_hidden_state
    by_hand = policy.value_head(states)[:, :-1, 0]
    mask = batch.mask[:, 1:]
    torch.testing.assert_close(seen[:, 1:][mask], by_hand[mask], atol=1e-4, rtol=0)


def test_imitation_is_the_mean_over_answer_tokens_weighted(policy_of: MakePolicy) -> None:
    policy = policy_of()
    batch = collate([given([65, 66], [67, 68, 69]), given([70], [71])])
    each = logprob(policy, batch)
    metrics = step(policy, batch, ImitationObjective())
    assert metrics["loss"] == pytest.approx(-float(each.sum()) / 4, rel=1e-5)
    weight = torch.tensor([2.0, 0.0])[:, None] * batch.mask
    metrics = step(policy_of(), replace(batch, weight=weight), ImitationObjective())
    assert metrics["loss"] == pytest.approx(-2 * float(each[0].sum()) / 4, rel=1e-5)


@pytest.mark.parametrize("budget", [1, 20, 30, 1000])
def test_micro_batches_hold_every_row_once_within_their_budget(
    policy_of: MakePolicy, budget: int
) -> None:
    policy = policy_of()
    batch = sampled(policy)
    rows = torch.arange(8)
    parts = [part.rows for part in micro_batches(policy.forward, batch, rows, budget)]
    assert sorted(torch.cat(parts).tolist()) == list(range(8))
    for part in parts:
        answers = int((batch.length - batch.prompt_length)[part].sum())
        assert len(part) == 1 or answers <= budget
