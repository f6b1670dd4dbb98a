"""Write verl_losses.json: verl 0.9.1's GSPO, CISPO and SAPO losses and RLOO advantage.

python make_verl_losses.py, with the interpreter that verl 0.9.1 is installed for. The inputs are
written beside the results; everything is float64.
"""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

ROWS, LENGTH = 5, 7
MODES = ("gspo", "cispo", "sapo")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm")
REWARDS = ([0.0, 1.0, 1.0, 3.0], [0.3, 0.3, 0.3, 0.3], [-2.0, 5.5, 0.25, 1.0])


def make_inputs(seed: int) -> dict[str, Any]:
    """Draw a batch whose mask has padding at the end and a gap in the middle."""
    draw = random.Random(seed)

    def matrix(low: float, high: float) -> list[list[float]]:
        return [[draw.uniform(low, high) for _ in range(LENGTH)] for _ in range(ROWS)]

    logprob, nudge = matrix(-4.0, -0.05), matrix(-0.6, 0.6)
    old = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(logprob, nudge, strict=True)]
    mask = [[t < 2 + row for t in range(LENGTH)] for row in range(ROWS)]
    mask[3][2] = mask[4][3] = mask[4][4] = False
    return {
        "logprob": logprob,
        "old_logprob": old,
        "advantage": matrix(-2.0, 2.0),
        "mask": mask,
    }


def losses(inputs: dict[str, Any]) -> dict[str, Any]:
    """Compute every loss of verl on the inputs, with its gradient."""
    found = {}
    for mode in MODES:
        for aggregation in AGGREGATIONS:
            config = ActorConfig(
                strategy="fsdp",
                rollout_n=1,
                ppo_micro_batch_size_per_gpu=1,
                clip_ratio=0.2,
                clip_ratio_low=0.2,
                clip_ratio_high=0.28,
                tau_pos=1.0,
                tau_neg=1.05,
            )
            config.global_batch_info["loss_scale_factor"] = 12
            logprob = torch.tensor(inputs["logprob"], dtype=torch.float64, requires_grad=True)
            loss, _ = core_algos.get_policy_loss_fn(mode)(
                old_log_prob=torch.tensor(inputs["old_logprob"], dtype=torch.float64),
                log_prob=logprob,
                advantages=torch.tensor(inputs["advantage"], dtype=torch.float64),
                response_mask=torch.tensor(inputs["mask"]).double(),
                loss_agg_mode=aggregation,
                config=config,
            )
            (gradient,) = torch.autograd.grad(loss, logprob)
            found[f"{mode}/{aggregation}"] = {"loss": loss.item(), "gradient": gradient.tolist()}
    return found


def rloo() -> list[list[float]]:
    """Compute verl's leave-one-out advantages of three groups of four."""
    reward = torch.tensor([r for group in REWARDS for r in group], dtype=torch.float64)
    index = np.array([str(i // 4) for i in range(12)])
    advantage, _ = core_algos.compute_rloo_outcome_advantage(
        token_level_rewards=reward[:, None],
        response_mask=torch.ones(12, 1, dtype=torch.float64),
        index=index,
    )
    groups: list[list[float]] = advantage.view(3, 4).tolist()
    return groups


if __name__ == "__main__":
    batches = [{"inputs": made, "losses": losses(made)} for made in map(make_inputs, range(3))]
    written = {
        "verl": version("verl"),
        "batches": batches,
        "rloo": {"reward": REWARDS, "advantage": rloo()},
    }
    Path(__file__).with_name("verl_losses.json").write_text(json.dumps(written, indent=1) + "\n")
