"""Write trl.json: the losses of TRL 1.16's DPO, KTO, ORPO and CPO trainers, and their gradients.

python make_goldens.py, with the interpreter that TRL 1.16 is installed for (the `bench` extra). The
trainers' own methods are called, with a model that returns given log probabilities.
"""

# ruff: noqa: ANN401 - what TRL hands over has no types

from __future__ import annotations

import json
import random
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

PAIRS, LENGTH = 6, 9
DESIRABLE = [True, False, True, True, False, False, True, False, True, False, False, True]


def make_inputs(seed: int) -> dict[str, Any]:
    """Draw log probabilities of the tokens of PAIRS better and PAIRS worse answers."""
    draw = random.Random(seed)
    rows = 2 * PAIRS
    policy = [[draw.uniform(-4, -0.02) for _ in range(LENGTH)] for _ in range(rows)]
    lengths = [draw.randint(2, LENGTH) for _ in range(rows)]
    return {
        "logprob": policy,
        "ref_logprob": [[one + draw.uniform(-0.8, 0.8) for one in row] for row in policy],
        "mask": [[place < lengths[row] for place in range(LENGTH)] for row in range(rows)],
        "desirable": DESIRABLE,
        "mismatched": [draw.uniform(-30, -5) for _ in range(rows)],
        "ref_mismatched": [draw.uniform(-30, -5) for _ in range(rows)],
    }


class Answering:
    """A model that answers with given log probabilities, as TRL's fused head returns them."""

    def __init__(self, logprob: Tensor) -> None:
        self.logprob = logprob

    def __call__(self, **_: Any) -> Any:
        blank = torch.zeros_like(self.logprob).detach()
        return SimpleNamespace(
            log_probs=self.logprob, entropy=blank, mean_logits=blank, is_top1=blank.bool()
        )


def accelerator() -> Any:
    same = SimpleNamespace(device=torch.device("cpu"))
    same.gather = same.gather_for_metrics = lambda value: value
    same.unwrap_model = lambda model: model
    return same


def tensors(inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return policy and reference with zeros where nothing is trained, and the mask."""
    mask = torch.tensor(inputs["mask"])
    policy = torch.tensor(inputs["logprob"], dtype=torch.float64)
    ref = torch.tensor(inputs["ref_logprob"], dtype=torch.float64) * mask
    return policy.requires_grad_(), ref, mask


def with_gradient(loss: Tensor, leaf: Tensor) -> dict[str, Any]:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return {"loss": loss.item(), "gradient": gradient.tolist()}


def dpo(inputs: dict[str, Any], loss_type: str) -> dict[str, Any]:
    """Run DPOTrainer._compute_loss."""
    policy, ref, mask = tensors(inputs)
    chosen, rejected = ref.sum(-1).chunk(2)
    trainer = SimpleNamespace(
        accelerator=accelerator(), model=SimpleNamespace(training=True), ld_alpha=None,
        precompute_ref_logps=True, aux_loss_enabled=False,
        f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0], beta=0.1,
        label_smoothing=0.0, use_weighting=False, _total_train_tokens=0, _tp_size=1,
        _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], dim=1).long()
    batch = {
        "input_ids": torch.ones_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = DPOTrainer._compute_loss(trainer, Answering(policy * mask), batch, False)
    return with_gradient(loss, policy)


def kto(inputs: dict[str, Any]) -> dict[str, Any]:
    """Run KTOTrainer._compute_loss."""
    policy, ref, mask = tensors(inputs)
    trainer = SimpleNamespace(
        accelerator=accelerator(), model=SimpleNamespace(training=True), calculate_KL=True,
        precompute_ref_logps=True, beta=0.1,
        aux_loss_enabled=False, loss_type="kto", desirable_weight=1.2, undesirable_weight=0.7,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        _compute_kl_logps=lambda *_: torch.tensor(inputs["mismatched"], dtype=torch.float64),
    )  # fmt: skip
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], dim=1).long()
    batch = {
        "input_ids": torch.ones_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "label": torch.tensor(inputs["desirable"]),
        "ref_logps": ref.sum(-1),
        "ref_KL_logps": torch.tensor(inputs["ref_mismatched"], dtype=torch.float64),
    }
    loss = KTOTrainer._compute_loss(trainer, Answering(policy * mask), batch, False)
    return with_gradient(loss, policy) | {"kl": trainer._metrics["train"]["kl"][0]}


def orpo(inputs: dict[str, Any]) -> dict[str, Any]:
    """Run ORPOTrainer.odds_ratio_loss on mean log probabilities; TRL computes it in float32."""
    policy, _, mask = tensors(inputs)
    chosen, rejected = ((policy * mask).sum(-1) / mask.sum(-1)).chunk(2)
    trainer = SimpleNamespace(accelerator=accelerator(), beta=0.1)
    losses = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
    return with_gradient(-losses.mean(), policy)


def cpo(inputs: dict[str, Any], loss_type: str, label_smoothing: float) -> dict[str, Any]:
    """Run CPOTrainer.cpo_loss: SimPO on mean log probabilities, smoothed DPO on log ratios."""
    policy, ref, mask = tensors(inputs)
    if loss_type == "simpo":
        of_answers = (policy * mask).sum(-1) / mask.sum(-1)
    else:
        of_answers = (policy * mask - ref).sum(-1)
    trainer = SimpleNamespace(
        accelerator=accelerator(), alpha=0.0, loss_type=loss_type, simpo_gamma=0.5, beta=2.0,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    losses = CPOTrainer.cpo_loss(trainer, *of_answers.chunk(2))[0]
    return with_gradient(losses.mean(), policy)


def losses(inputs: dict[str, Any]) -> dict[str, Any]:
    """Compute every loss of TRL on the inputs."""
    return {
        "dpo": dpo(inputs, "sigmoid"),
        "ipo": dpo(inputs, "ipo"),
        "kto": kto(inputs),
        "orpo": orpo(inputs),
        "simpo": cpo(inputs, "simpo", 0.0),
        "smoothed": cpo(inputs, "sigmoid", 0.1),
    }


if __name__ == "__main__":
    batches = [{"inputs": made, "losses": losses(made)} for made in map(make_inputs, range(3))]
    written = {"trl": version("trl"), "batches": batches}
    Path(__file__).with_name("trl.json").write_text(json.dumps(written, indent=1) + "\n")
