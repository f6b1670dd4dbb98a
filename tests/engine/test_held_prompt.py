"""A long prompt runs once for all micro-batches of its answers, and changes no result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train.engine import update as updating
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.distillation import DistillObjective, measure_divergence
from orbiter.train.engine.forward.fast import FastForward
from orbiter.train.engine.objective import ImitationObjective, PolicyObjective
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.update import (
    Objective,
    logprob,
    micro_batches,
    ref_logprob,
    update,
    value,
)
from orbiter.train.errors import TrainingError

MakePolicy = Callable[..., Policy]
LENGTH = 40
"""Tokens of the long prompt."""
BUDGET, WHOLE = 24, 10_000
"""Tokens of a micro-batch: some three answers, and everything."""


@pytest.fixture(autouse=True)
def hold_short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating, "WORTH_HOLDING", 1)


def rows(*, from_the_first: bool = True) -> Batch:
    """Seven answers to a long prompt, and two to a short one in between."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(64, 122, (count,), generator=draw).tolist()

    long, short = tokens(LENGTH), tokens(5)
    made: list[Rollout] = []
    for number, length in enumerate([9, 1, 12, 7, 7, 3, 8, 6, 5]):
        prompt = short if number in {2, 5} else long
        answer = tokens(length)
        if number == 7:
            answer = made[0].token_ids[len(prompt) :][:4] + answer[4:]  # two rows begin alike
        # A tool's text is given, not trained, and an episode may begin with some.
        mask = [from_the_first or k > 0 or length == 1 for k in range(length)]
        given = [False] * len(prompt)
        made.append(
            Rollout(prompt + answer, given + mask, [0.0] * (len(prompt) + length), len(prompt))
        )
    batch = collate(made, advantage=torch.linspace(-1, 1.5, len(made)))
    zeros = torch.zeros_like(batch.sampled_logprob)
    return replace(batch, ref_logprob=zeros - 4.0, old_value=zeros, return_=zeros + 1.0)


def after(policy: Policy, batch: Batch, objective: Objective, budget: int) -> dict[str, Tensor]:
    """Return the weights after a step that is the gradient, as eps is far above it."""
    optimiser = make_optimiser(policy, learning_rate=1.0, eps=1.0)
    update(policy, batch, optimiser, objective, micro_batch_tokens=budget)
    return {name: p.detach().clone() for name, p in policy.named_trainable().items()}


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many tokens each pass of the model runs."""
    counts: list[int] = []
    embed = FastForward.embed

    def counted(self: FastForward, token_ids: Tensor) -> Tensor:
        counts.append(len(token_ids))
        return embed(self, token_ids)

    monkeypatch.setattr(FastForward, "embed", counted)
    return counts


OBJECTIVES: dict[str, Objective] = {
    "everything": PolicyObjective(kl_coef=0.1, vf_coef=0.5, clip_range_value=0.2, ent_coef=0.01),
    "imitation": ImitationObjective(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}])
@pytest.mark.parametrize("from_the_first", [True, False])
def test_the_gradient_is_that_of_one_pass(
    policy_of: MakePolicy, name: str, family: str, settings: dict[str, Any], from_the_first: bool
) -> None:
    batch = rows(from_the_first=from_the_first)
    one, many = (
        after(policy_of(family, value_head=True, **settings), batch, OBJECTIVES[name], budget)
        for budget in (WHOLE, BUDGET)
    )
    untouched = policy_of(family, value_head=True, **settings).named_trainable()
    assert any(float((one[n] - p.detach()).abs().max()) > 1e-4 for n, p in untouched.items())
    assert max(float((one[n] - w).abs().max()) for n, w in many.items()) < 1e-5


def test_the_prompt_runs_once(policy_of: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch = policy_of(), rows()
    counts = count_tokens(monkeypatch)
    after(policy, batch, PolicyObjective(), BUDGET)
    assert counts.count(LENGTH) == 1
    assert max(counts) == LENGTH
    # The long prompt, its answers in several passes, and the short prompt with both its answers.
    assert len(counts) > 3
    assert all(count <= BUDGET for count in counts if count != LENGTH)


def test_a_prompt_and_some_of_its_answers_fit_into_a_micro_batch(
    policy_of: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch = policy_of(), rows()
    counts = count_tokens(monkeypatch)
    after(policy, batch, PolicyObjective(), 80)
    # Of seven answers with 43 tokens 40 fit beside the prompt: two passes of about the same size.
    # The last token of each is not run.
    prompt, *answers = counts[:3]
    assert prompt == LENGTH
    assert sum(answers) == 43 - 7
    assert max(answers) - min(answers) <= 12  # the longest answer


@pytest.mark.parametrize("path", ["auto", "generic"])
def test_scores_are_those_of_one_pass(policy_of: MakePolicy, path: str) -> None:
    policy = policy_of(path=path, value_head=True, reference=True)
    torch.nn.init.normal_(policy.value_head.weight)  # type: ignore[union-attr]
    batch = rows()
    for numbers in (logprob, ref_logprob, value):
        one, many = (numbers(policy, batch, micro_batch_tokens=n) for n in (WHOLE, BUDGET))
        torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-5)  # some values are above 10
        assert bool((one[batch.mask] != 0).all())


def test_distillation_holds_the_prompts_of_both_models(
    policy_of: MakePolicy, randomised: Callable[[Policy], Policy]
) -> None:
    teacher, batch = randomised(policy_of()), rows()
    policy = replace(policy_of(), teacher=teacher)
    objective = DistillObjective(reward=PolicyObjective())
    one, many = (
        after(replace(policy_of(), teacher=teacher), batch, objective, n) for n in (WHOLE, BUDGET)
    )
    assert max(float((one[n] - w).abs().max()) for n, w in many.items()) < 1e-5
    of_one, of_many = (
        measure_divergence(policy, batch, temperature=1.0, beta=0.5, micro_batch_tokens=n)
        for n in (WHOLE, BUDGET)
    )
    assert of_many == pytest.approx(of_one, abs=1e-6)


def test_answers_of_one_token_need_only_the_prompt(policy_of: MakePolicy) -> None:
    batch = rows()
    one = (batch.length - batch.prompt_length == 1).nonzero()[:, 0].repeat(3)
    short = batch.select(one)
    short = replace(short, token_ids=short.token_ids.clone())
    short.token_ids[:, -1] = torch.tensor([70, 71, 72])
    passes = (after(policy_of(), short, ImitationObjective(), budget) for budget in (WHOLE, 1))
    whole, cut = passes
    assert max(float((whole[n] - w).abs().max()) for n, w in cut.items()) < 1e-5


def test_a_part_of_a_batch_may_have_large_group_numbers(policy_of: MakePolicy) -> None:
    whole = rows()
    part = replace(whole, group=whole.group + 100).select(torch.tensor([0, 2, 3, 6]))
    parts = list(micro_batches(policy_of().forward, part, torch.arange(4), BUDGET))
    assert sorted(row for each in parts for row in each.rows.tolist()) == list(range(4))


def test_units_with_rows_of_two_prompts_are_not_separated(policy_of: MakePolicy) -> None:
    batch, forward = rows(), policy_of().forward
    for unit in ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6, 6, 7]):
        joined = replace(batch, unit=torch.tensor(unit))
        parts = list(micro_batches(forward, joined, torch.arange(9), BUDGET))
        assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(9))
        homes = [set(joined.unit[part.rows].tolist()) for part in parts]  # type: ignore[index]
        assert sum(map(len, homes)) == len(set(unit))
        held = [part for part in parts if part.forward is not forward]
        # In the first case units hold rows of both prompts; in the second the long one is held.
        assert bool(held) == (len(set(unit)) == 8)


def test_a_loss_that_is_not_finite_leaves_the_weights(policy_of: MakePolicy) -> None:
    policy, batch = policy_of(), rows()
    assert batch.advantage is not None
    batch.advantage[8] = float("nan")
    before = {name: p.detach().clone() for name, p in policy.named_trainable().items()}
    with pytest.raises(TrainingError, match="the loss is nan"):
        after(policy, batch, PolicyObjective(), BUDGET)
    assert all(torch.equal(before[n], p) for n, p in policy.named_trainable().items())
