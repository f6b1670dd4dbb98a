"""Write trl_reward_model.json: scores, losses and gradients of TRL 1.16's RewardTrainer.

python make_reward_model_goldens.py, with TRL installed (the extra "bench" has it). The model is the
built-in tiny one as Transformers' sequence classifier, with a head of fixed weights. The inputs are
written beside the results, so that the tests need neither TRL nor this script.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from orbiter.train.engine.models.tiny import tiny_model

HERE = Path(__file__).parent
PAIRS, PROMPT, PAD = 5, 9, 258
CASES = ({"margin": False, "centering": None}, {"margin": True, "centering": None},
         {"margin": True, "centering": 0.05})  # fmt: skip


def main() -> None:
    draw = random.Random(7)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(32, 127) for _ in range(count)]

    examples = []
    for _ in range(PAIRS):
        prompt = tokens(PROMPT)
        examples.append(
            {
                "chosen_ids": prompt + tokens(draw.randrange(2, 9)) + [257],
                "rejected_ids": prompt + tokens(draw.randrange(2, 9)) + [257],
                "margin": draw.uniform(0.0, 2.0),
            }
        )
    head = [draw.gauss(0.0, 0.4) for _ in range(128)]
    results = [numbers(examples, head, **case) for case in CASES]
    document = {
        "made_with": {name: version(name) for name in ("trl", "transformers", "torch")},
        "prompt_length": PROMPT,
        "pad_token_id": PAD,
        "examples": examples,
        "head": head,
        "results": results,
    }
    (HERE / "trl_reward_model.json").write_text(json.dumps(document, indent=1) + "\n")


def numbers(
    examples: list[dict[str, Any]], head: list[float], *, margin: bool, centering: float | None
) -> dict[str, Any]:
    """Return what RewardTrainer computes on a batch."""
    language_model = tiny_model()
    config = language_model.config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    model.model = language_model.model
    model.score.weight = torch.nn.Parameter(torch.tensor([head]))
    model.eval()
    given = [e if margin else {k: v for k, v in e.items() if k != "margin"} for e in examples]
    inputs = DataCollatorForPreference(pad_token_id=PAD)(given)
    trainer = SimpleNamespace(
        args=SimpleNamespace(center_rewards_coefficient=centering),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        model=SimpleNamespace(training=False),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    loss, outputs = RewardTrainer.compute_loss(trainer, model, inputs, return_outputs=True)
    loss.backward()
    norm = model.model.norm.weight.grad
    return {
        "margin": margin,
        "centering": centering,
        "loss": loss.item(),
        "scores": outputs.logits[:, 0].tolist(),
        "accuracy": trainer._metrics["eval"]["accuracy"][0],
        "head_gradient": model.score.weight.grad[0].tolist(),
        "norm_gradient": norm.tolist(),
    }


if __name__ == "__main__":
    main()
