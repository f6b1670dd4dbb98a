"""Describe a model without its weights, so that tokens and bytes can be counted before a run.

Nothing is downloaded: a model that is not on this machine has no outline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from orbiter.train.engine.arithmetic import choose_dtype, pick_device
from orbiter.train.engine.config import EngineConfig
from orbiter.train.engine.forward.fast import FAMILIES
from orbiter.train.engine.models.architectures import context_of, require_supported
from orbiter.train.engine.models.download import cache_folder
from orbiter.train.engine.models.gguf import CACHED, SMOLLM2
from orbiter.train.engine.models.load import TINY, base_of_adapter
from orbiter.train.engine.models.lora import add_lora
from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer
from orbiter.train.errors import StorageError, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A model's structure before it is loaded; its modules hold no weights.

    The exception is "tiny", which is small enough to be built with its weights.
    """

    model: Any
    tokenizer: Any
    value_head: nn.Module | None
    path: str
    """Name of the forward pass it will use: "fast" or "generic"."""
    dtype: str
    computes: str
    """The dtype, the processor or accelerator, and the reason for the dtype."""
    device: torch.device
    weights: int
    """Bytes that loading it will take, in float32, including a frozen reference."""

    @property
    def context_length(self) -> int:
        """Largest number of tokens of prompt and answer together."""
        return context_of(self.model.config)

    @property
    def adapted(self) -> bool:
        """Whether LoRA adapters are trained instead of the weights."""
        return hasattr(self.model, "peft_config")

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that would be trained, by name."""
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self.value_head is not None:
            named |= {f"value_head.{n}": p for n, p in self.value_head.named_parameters()}
        return named


def make_outline(config: EngineConfig, *, reference: bool, value_head: bool) -> Outline | None:
    """Return the outline of a config's model, or None if the model is not on this machine.

    Raises:
        StorageError: the model is a folder that does not hold a model.
        ConfigError: the engine cannot train a model of this architecture.
    """
    skeleton = _skeleton(config.model)
    if skeleton is None:
        return None
    model, tokenizer = skeleton
    require_supported(model)
    path = "fast" if type(model).__name__ in FAMILIES else "generic"
    if config.lora_rank:
        model = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha)
    copies = 2 if reference and not config.lora_rank else 1
    device = pick_device(config.device)
    arithmetic = choose_dtype(config.dtype, device)
    head = nn.Linear(model.config.hidden_size, 1, device="meta") if value_head else None
    return Outline(
        model=model,
        tokenizer=tokenizer,
        value_head=head,
        path=path,
        dtype=arithmetic.dtype,
        computes=arithmetic.on(device),
        device=device,
        weights=4 * copies * sum(p.numel() for p in model.parameters()),
    )


class _Skeleton(NamedTuple):
    """A model without weights, and its tokenizer."""

    model: Any
    tokenizer: Any


def _skeleton(name: str) -> _Skeleton | None:
    if name == TINY:
        return _Skeleton(tiny_model(), tiny_tokenizer())
    if name == SMOLLM2:
        cached = cache_folder() / CACHED
        return _read(str(cached)) if cached.is_dir() else None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")):
            raise StorageError(f"there is no model in {folder}: no such folder")
        return _read(name)
    if (folder / "config.json").is_file():
        return _read(str(folder))
    if (folder / "adapter_config.json").is_file():
        return _skeleton(base_of_adapter(folder))
    raise StorageError(f"{folder} is not a saved model: config.json is missing")


def _read(name: str) -> _Skeleton | None:
    """Read config and tokenizer from a folder or from the hub's cache on this machine."""
    transformers = require("transformers", extra="train")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **local)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return _Skeleton(model, tokenizer)
