from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer
from orbiter.train.engine.optimiser import Optimiser, make_optimiser
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.update import Part, score, update
from orbiter.train.errors import StateError
from orbiter.train.preference.bradley_terry import BradleyTerryObjective, bradley_terry_loss
from orbiter.train.preference.encoding import AttemptBatch
from orbiter.train.preference.reward_model_rows import ScoreRow, score_batch, scores_of

GOLDEN = json.loads((Path(__file__).parent / "golden/trl_reward_model.json").read_text())

numbers = st.floats(-30, 30)


@given(
    pairs=st.lists(st.tuples(numbers, numbers, st.floats(0, 5)), min_size=1, max_size=6),
    centering=st.sampled_from([0.0, 0.01, 0.7]),
)
def test_the_loss_is_that_of_plain_floats(
    pairs: list[tuple[float, float, float]], centering: float
) -> None:
    chosen, rejected, margin = torch.tensor(pairs, dtype=torch.float64).unbind(dim=1)
    have = bradley_terry_loss(chosen, rejected, margin=margin, centering_coef=centering)
    want = [math.log1p(math.exp(-(c - r - m))) + centering * (c + r) ** 2 for c, r, m in pairs]
    assert have.tolist() == pytest.approx(want, rel=1e-9, abs=1e-12)


@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), shift=numbers)
def test_adding_the_same_number_to_all_scores_changes_nothing_without_centring(
    pairs: list[tuple[float, float]], shift: float
) -> None:
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(dim=1)
    before = bradley_terry_loss(chosen, rejected)
    after = bradley_terry_loss(chosen + shift, rejected + shift)
    assert torch.allclose(before, after, atol=1e-9)
    moved = bradley_terry_loss(chosen + 1, rejected + 1, centering_coef=0.1)
    unmoved = bradley_terry_loss(chosen, rejected, centering_coef=0.1)
    assert not torch.allclose(moved, unmoved) or torch.allclose(
        chosen + rejected, -torch.ones(1).double()
    )


def test_the_gradient_of_the_distance_is_the_probability_of_the_wrong_order_minus_one() -> None:
    chosen = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.1, 0.5], dtype=torch.float64, requires_grad=True)
    margin = torch.tensor([0.25, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda c, r: bradley_terry_loss(c, r, margin=margin, centering_coef=0.3), (chosen, rejected)
    )
    (of_chosen,) = torch.autograd.grad(bradley_terry_loss(chosen, rejected).sum(), chosen)
    assert of_chosen.tolist() == pytest.approx(
        (-torch.sigmoid(rejected - chosen)).tolist(), rel=1e-12
    )


def reward_policy(head: list[float]) -> Policy:
    made = nn.Linear(len(head), 1, bias=False)
    made.weight = nn.Parameter(torch.tensor([head]))
    return make_policy(tiny_model(), tiny_tokenizer(), value_head=made, dtype="float32")


def golden_batch() -> AttemptBatch:
    length = GOLDEN["prompt_length"]
    return score_batch(
        [
            [ScoreRow(e["chosen_ids"], length), ScoreRow(e["rejected_ids"], length)]
            for e in GOLDEN["examples"]
        ]
    )


def objective(case: dict[str, Any]) -> BradleyTerryObjective:
    margins = [e["margin"] if case["margin"] else 0.0 for e in GOLDEN["examples"]]
    return BradleyTerryObjective(
        margin=torch.tensor(margins), centering_coef=case["centering"] or 0.0
    )


@pytest.mark.parametrize("case", GOLDEN["results"])
def test_scores_loss_and_gradient_are_those_of_trl(case: dict[str, Any]) -> None:
    policy, batch = reward_policy(GOLDEN["head"]), golden_batch()
    rows = [
        ScoreRow(e[side], GOLDEN["prompt_length"])
        for side in ("chosen_ids", "rejected_ids")
        for e in GOLDEN["examples"]
    ]
    scores = scores_of(policy, rows, micro_batch_tokens=64)
    assert scores == pytest.approx(case["scores"], abs=1e-5)
    loss, metrics = objective(case)(score(policy, batch), batch, Part(tokens=1.0, rows=1.0))
    assert float(loss.detach()) == pytest.approx(case["loss"], abs=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(case["accuracy"])
    assert policy.value_head is not None
    of_head, of_norm = torch.autograd.grad(
        loss, [policy.value_head.weight, policy.model.get_parameter("model.norm.weight")]
    )
    assert torch.allclose(of_head[0], torch.tensor(case["head_gradient"]), atol=1e-5)
    assert torch.allclose(of_norm, torch.tensor(case["norm_gradient"]), atol=1e-5)


def gradients(policy: Policy, micro_batch_tokens: int) -> dict[str, Tensor]:
    """Return the gradient of an update, which is then not taken."""
    seen: dict[str, Tensor] = {}

    class Kept(Optimiser):
        def step(self, *, max_grad_norm: float) -> float:
            seen.update({n: p.grad.clone() for n, p in self.named.items() if p.grad is not None})
            return 0.0

    made = make_optimiser(policy, learning_rate=1.0)
    case = GOLDEN["results"][2]
    update(
        policy,
        golden_batch(),
        Kept(made.named, made.adamw),
        objective(case),
        micro_batch_tokens=micro_batch_tokens,
    )
    return seen


def test_the_gradient_does_not_depend_on_the_micro_batches() -> None:
    policy = reward_policy(GOLDEN["head"])
    whole, cut = gradients(policy, 10_000), gradients(policy, 1)
    assert whole.keys() == cut.keys()
    for name in whole:
        assert float((whole[name] - cut[name]).norm() / whole[name].norm()) < 1e-5, name


def planted(fault: str, batch: AttemptBatch) -> tuple[BradleyTerryObjective, AttemptBatch]:
    """Return the golden loss with a mistake in it."""
    from dataclasses import replace

    right = objective(GOLDEN["results"][2])
    match fault:
        case "the sides swapped":
            return right, replace(batch, side=1 - batch.side)
        case "the margin added":
            return replace(right, margin=-right.margin), batch
        case "the margin of another pair":
            return replace(right, margin=right.margin.roll(1)), batch
        case "the score one token early":
            mask = batch.mask.roll(-1, dims=1)
            return right, replace(batch, mask=mask)
        case "the wrong pair":
            unit = batch.unit
            assert unit is not None
            other = torch.where(batch.side == 0, unit, (unit + 1) % 5)
            return right, replace(batch, unit=other)
    return replace(right, centering_coef=0.0), batch


@pytest.mark.parametrize(
    "fault",
    [
        "the sides swapped",
        "the margin added",
        "the margin of another pair",
        "the score one token early",
        "the wrong pair",
        "no centring",
    ],
)
def test_a_planted_fault_moves_the_golden_loss(fault: str) -> None:
    policy = reward_policy(GOLDEN["head"])
    wrong, batch = planted(fault, golden_batch())
    loss, _ = wrong(score(policy, batch), batch, Part(tokens=1.0, rows=1.0))
    assert abs(float(loss.detach()) - GOLDEN["results"][2]["loss"]) > 1e-3


def test_a_policy_without_a_head_is_refused() -> None:
    policy = make_policy(tiny_model(), tiny_tokenizer(), dtype="float32")
    batch: Batch = golden_batch()
    with pytest.raises(StateError, match="head for scores"):
        objective(GOLDEN["results"][0])(score(policy, batch), batch, Part(1.0, 1.0))


def test_rows_that_share_a_prompt_run_it_once() -> None:
    policy, batch = reward_policy(GOLDEN["head"]), golden_batch()
    cost = int(policy.forward.cost(batch).sum())
    apart = int(batch.length.sum())
    assert cost == apart - GOLDEN["prompt_length"] * len(GOLDEN["examples"])
