"""Write verl.json and trl.json: what verl 0.9.1 and TRL 1.16 compute on fixed inputs.

python make_goldens.py, in an environment of its own:
    python3 -m venv peers && . peers/bin/activate
    pip install torch==2.13.0 verl==0.9.1 trl==1.16.0
No number in the two files was ever typed by hand. Everything is float64. The inputs are written
beside the results, so that the tests need neither peer nor this script.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer
from trl.trainer.utils import nanstd
from verl.trainer.ppo import core_algos
from verl.utils import torch_functional
from verl.workers.config import ActorConfig

HERE = Path(__file__).parent
ROWS, LENGTH, MAX_LENGTH = 5, 7, 12
NO_DUAL_CLIP = 1e9
REWARDS = ([0.0, 1.0, 1.0, 3.0], [0.3, 0.3, 0.3, 0.3], [-2.0, 5.5, 0.25, 1.0])
Json = Any


def make_inputs(seed: int) -> dict[str, Json]:
    """Draw a batch whose mask has padding at the end and a tool's answer in the middle."""
    draw = random.Random(seed)

    def matrix(low: float, high: float) -> list[list[float]]:
        return [[draw.uniform(low, high) for _ in range(LENGTH)] for _ in range(ROWS)]

    logprob = matrix(-4.0, -0.05)
    nudge = matrix(-0.6, 0.6)
    ref_nudge = matrix(-1.5, 1.5)
    mask = [[t < 2 + row for t in range(LENGTH)] for row in range(ROWS)]
    mask[3][2] = mask[4][3] = mask[4][4] = False
    return {
        "logprob": logprob,
        "old_logprob": plus(logprob, nudge),
        "ref_logprob": plus(logprob, ref_nudge),
        "advantage": matrix(-2.0, 2.0),
        "value": matrix(-1.0, 1.0),
        "old_value": matrix(-1.0, 1.0),
        "return_": matrix(-1.0, 1.0),
        "reward": matrix(-1.0, 1.0),
        "score": [draw.uniform(-1.0, 1.0) for _ in range(ROWS)],
        "logits": [[draw.uniform(-3.0, 3.0) for _ in range(9)] for _ in range(ROWS)],
        "mask": mask,
    }


def plus(x: list[list[float]], y: list[list[float]]) -> list[list[float]]:
    """Add two matrices."""
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(x, y, strict=True)]


def tensors(inputs: dict[str, Json]) -> SimpleNamespace:
    """Return the inputs as float64 tensors, the trained ones with a gradient."""
    made = {name: torch.tensor(value, dtype=torch.float64) for name, value in inputs.items()}
    for name in ("logprob", "value"):
        made[name].requires_grad_()
    return SimpleNamespace(**made)


def with_gradient(loss: torch.Tensor, leaf: torch.Tensor, **more: torch.Tensor) -> dict[str, Json]:
    """Return a loss, its gradient, and whatever else is given, as plain numbers."""
    (gradient,) = torch.autograd.grad(loss, leaf)
    numbers = {"loss": loss.item(), "gradient": gradient.tolist()}
    return numbers | {name: float(value) for name, value in more.items()}


def verl_policy(x: SimpleNamespace) -> dict[str, Json]:
    """Every aggregation of verl's vanilla loss, and GSPO."""
    modes = {
        "token": "token-mean",
        "sequence": "seq-mean-token-mean",
        "constant": "seq-mean-token-sum-norm",
    }
    results = {}
    for ours, theirs in modes.items():
        config = ActorConfig(
            strategy="fsdp",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio=0.2,
            clip_ratio_low=0.2,
            clip_ratio_high=0.28,
            clip_ratio_c=NO_DUAL_CLIP,
        )
        config.global_batch_info["loss_scale_factor"] = MAX_LENGTH
        for ratio, name in (("token", "vanilla"), ("sequence", "gspo")):
            loss, metrics = core_algos.get_policy_loss_fn(name)(
                x.old_logprob, x.logprob, x.advantage, x.mask, theirs, config
            )
            clipped = torch.tensor(metrics["actor/pg_clipfrac"])
            results[f"{ratio}/{ours}"] = with_gradient(loss, x.logprob, clip_fraction=clipped)
    return results


def verl_value(x: SimpleNamespace) -> dict[str, Json]:
    """verl's clipped value loss."""
    loss, clipped = core_algos.compute_value_loss(
        x.value, x.return_, x.old_value, x.mask, cliprange_value=0.2
    )
    return with_gradient(loss, x.value, clip_fraction=clipped)


def verl_gae(x: SimpleNamespace) -> dict[str, Json]:
    """verl's GAE, whose advantages come out whitened."""
    advantage, return_ = core_algos.compute_gae_advantage_return(
        x.reward * x.mask, x.old_value, x.mask, gamma=0.97, lam=0.9
    )
    return {"whitened": (advantage * x.mask).tolist(), "return_": (return_ * x.mask).tolist()}


def verl_grpo() -> dict[str, Json]:
    """verl's group advantage, with and without the standard deviation."""
    score = torch.tensor(REWARDS, dtype=torch.float64)
    index = np.repeat(np.arange(len(REWARDS)), score.shape[1])
    results = {}
    for scale, divided in (("std", True), ("none", False)):
        advantage, _ = core_algos.compute_grpo_outcome_advantage(
            score.reshape(-1, 1).clone(),
            torch.ones(score.numel(), 1, dtype=torch.float64),
            index,
            norm_adv_by_std_in_grpo=divided,
        )
        results[scale] = advantage.reshape(score.shape).tolist()
    return results


def verl_numbers(inputs: dict[str, Json]) -> dict[str, Json]:
    """All that verl is asked for one batch."""
    x = tensors(inputs)
    kinds = ("k1", "k2", "k3")
    return {
        "inputs": inputs,
        "policy": verl_policy(x),
        "value": verl_value(x),
        "gae": verl_gae(x),
        "kl": {k: core_algos.kl_penalty(x.logprob, x.ref_logprob, k).tolist() for k in kinds},
        "entropy": torch_functional.entropy_from_logits(x.logits).tolist(),
        "whiten": (torch_functional.masked_whiten(x.reward, x.mask) * x.mask).tolist(),
        "masked_mean": torch_functional.masked_mean(x.reward, x.mask).item(),
        "masked_var": torch_functional.masked_var(x.reward, x.mask).item(),
    }


def trl_trainer(x: SimpleNamespace, loss_type: str, level: str, beta: float) -> SimpleNamespace:
    """What TRL's loss looks up on its trainer, and no more: the log-probabilities are given."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (x.logprob, x.logprob.detach(), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_LENGTH,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda t: t, reduce=lambda t, **_: t),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )


def trl_numbers(inputs: dict[str, Json]) -> dict[str, Json]:
    """TRL's loss for each of its loss types that has one of our aggregations."""
    x = tensors(inputs)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    batch = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": x.mask,
        "advantages": x.advantage,
        "old_per_token_logps": x.old_logprob,
        "ref_per_token_logps": x.ref_logprob,
        "num_items_in_batch": x.mask.sum(),
    }
    wanted = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
    results = {}
    for loss_type, aggregation in wanted.items():
        for level in ("token", "sequence"):
            trainer = trl_trainer(x, loss_type, level, beta=0.0)
            # TRL's sequence ratio spreads its gradient over a row: one advantage a row, as in GRPO.
            advantage = x.advantage if level == "token" else x.advantage[:, 0]
            loss = GRPOTrainer._compute_loss(trainer, None, batch | {"advantages": advantage})
            results[f"{loss_type}/{level}/{aggregation}"] = with_gradient(loss, x.logprob)
    trainer = trl_trainer(x, "grpo", "token", beta=0.04)
    penalised = GRPOTrainer._compute_loss(trainer, None, batch)
    results["grpo+k3/token/sequence"] = with_gradient(penalised, x.logprob)
    return {"inputs": inputs, "policy": results}


def main() -> None:
    """Write both files."""
    batches = [make_inputs(seed) for seed in range(3)]
    std = nanstd(torch.tensor(REWARDS, dtype=torch.float64), dim=1)
    documents = {
        "verl": {"batches": [verl_numbers(b) for b in batches], "grpo": verl_grpo()},
        "trl": {"batches": [trl_numbers(b) for b in batches], "group_std": std.tolist()},
    }
    for peer, document in documents.items():
        header = {"made_by": "make_goldens.py", "version": version(peer), "rewards": REWARDS}
        text = json.dumps(header | document, indent=None, separators=(",", ":"))
        (HERE / f"{peer}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
