"""Low-rank adapters through peft: putting them on, and switching them off for the reference.

Left out: merging and saving, which peft does by itself in the format that everybody reads.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from orbiter.train.errors import ConfigError, require

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_lora(
    model: PreTrainedModel, *, rank: int, alpha: float | None = None, seed: int = 0
) -> PeftModel:
    """Freeze the model and put an adapter B A (alpha / rank) on every linear layer of its body.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685. B starts at zero, so that the model starts
    as it is; A is drawn from `seed`. No dropout: the policy that samples must be the policy that
    is scored. `alpha` defaults to twice the rank.
    """
    if rank < 1:
        raise ConfigError(f"lora_rank must be at least 1, got {rank}")
    peft: Any = require("peft", extra="train")
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers 5.23 under a name that 6 will not know any more.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        adapted: PeftModel = peft.get_peft_model(model, config)
    return adapted
