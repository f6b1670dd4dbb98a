"""Add low-rank adapters to a model through peft.

Merging and saving them is also done by peft, in its standard format; see `export.py`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from orbiter.train.errors import ConfigError, require

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def is_adapted(model: nn.Module) -> bool:
    """Return whether adapters are trained instead of the weights."""
    return hasattr(model, "peft_config")


def named_trainable(model: nn.Module, value_head: nn.Module | None) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in a stable order, the value head last.

    With adapters these are the only trained parameters of the model.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if value_head is not None:
        named |= {f"value_head.{n}": p for n, p in value_head.named_parameters()}
    return named


def add_lora(
    model: PreTrainedModel, *, rank: int, alpha: float | None = None, seed: int = 0
) -> PeftModel:
    """Freeze the model and add an adapter B A (alpha / rank) to every linear layer of its body.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685. B starts at zero, so the model's outputs do
    not change at first; A is drawn from `seed`. There is no dropout, because the sampling policy
    must be the one that is scored. `alpha` defaults to twice the rank.
    """
    if rank < 1:
        raise ConfigError(f"lora_rank must be at least 1, got {rank}")
    peft: Any = require("peft", extra="train")
    # GPT-2 stores its weights transposed, in a class called Conv1D.
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    # peft draws A from the global generator; fork_rng keeps the user's random state unchanged.
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft uses a name that transformers 5.23 deprecates and version 6 removes.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        adapted: PeftModel = peft.get_peft_model(model, config)
    return adapted
