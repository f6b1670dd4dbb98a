"""Write distillation.json: TRL 1.16's generalised Jensen-Shannon loss of GKD, and its gradient.

python make_distillation.py, with an interpreter that trl 1.16 is installed for. The inputs are
written beside the results; everything is float64.
"""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from trl.experimental.gkd import GKDTrainer

ROWS, LENGTH, VOCABULARY = 3, 5, 8
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (1.0, 0.7)


def logits(draw: random.Random) -> list[list[list[float]]]:
    """Draw logits in which some tokens are very unlikely."""
    return [
        [[draw.uniform(-6, 4) for _ in range(VOCABULARY)] for _ in range(LENGTH)]
        for _ in range(ROWS)
    ]


def made(seed: int) -> dict[str, Any]:
    """Return inputs, and TRL's loss as the mean over the trained tokens."""
    draw = random.Random(seed)
    inputs = {
        "student": logits(draw),
        "teacher": logits(draw),
        "mask": [[t < 2 + row and t != 1 for t in range(LENGTH)] for row in range(ROWS)],
    }
    mask = torch.tensor(inputs["mask"])
    labels = torch.where(mask, 0, -100)
    losses = {}
    for beta in BETAS:
        for temperature in TEMPERATURES:
            student = torch.tensor(inputs["student"], dtype=torch.float64, requires_grad=True)
            loss = GKDTrainer.generalized_jsd_loss(
                student,
                torch.tensor(inputs["teacher"], dtype=torch.float64),
                labels=labels,
                beta=beta,
                temperature=temperature,
                num_items_in_batch=int(mask.sum()),
            )
            (gradient,) = torch.autograd.grad(loss, student)
            losses[f"{beta}/{temperature}"] = {"loss": loss.item(), "gradient": gradient.tolist()}
    return {"inputs": inputs, "losses": losses}


def main() -> None:
    """Write the file."""
    numbers = {"trl": version("trl"), "batches": [made(seed) for seed in range(2)]}
    path = Path(__file__).with_name("distillation.json")
    path.write_text(json.dumps(numbers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
