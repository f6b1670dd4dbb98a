"""Describe a model without its weights, so that tokens and bytes can be counted before a run.

Nothing is downloaded: a model that is not on this machine has no outline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orbiter.train.engine.arithmetic import choose_dtype, pick_device
from orbiter.train.engine.config import EngineConfig
from orbiter.train.engine.forward.fast import FAMILIES
from orbiter.train.engine.models.architectures import context_of, require_supported
from orbiter.train.engine.models.download import cache_folder, hub_folder
from orbiter.train.engine.models.gguf import CACHED, SMOLLM2
from orbiter.train.engine.models.load import (
    TINY,
    base_model_of,
    find_base,
    is_path,
    no_progress_bars,
    saved_kind,
)
from orbiter.train.engine.models.lora import add_lora, is_adapted, named_trainable
from orbiter.train.engine.models.pretrained import Pretrained, check_adapter_files, load_outline
from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer
from orbiter.train.errors import StorageError


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
        return is_adapted(self.model)

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that would be trained, by name."""
        return named_trainable(self.model, self.value_head)


def make_outline(config: EngineConfig, *, reference: bool, value_head: bool) -> Outline | None:
    """Return the outline of a config's model, or None if the model is not on this machine.

    Raises:
        StorageError: the model is a folder that does not hold a model, or a damaged one.
        ConfigError: the engine cannot train a model of this architecture.
    """
    with no_progress_bars():
        skeleton = _skeleton(config.model, config.trust_remote_code)
    if skeleton is None:
        return None
    model, tokenizer = skeleton
    require_supported(model)
    path = "fast" if type(model).__name__ in FAMILIES else "generic"
    if config.lora_rank:
        model = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha)
    # With LoRA the reference is the model with its adapters off, so no second copy is loaded.
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


def _skeleton(name: str, trust: bool, adapters: tuple[Path, ...] = ()) -> Pretrained | None:
    if name == TINY:
        return Pretrained(tiny_model(), tiny_tokenizer())
    if name == SMOLLM2:
        cached = cache_folder() / CACHED
        return load_outline(cached) if cached.is_dir() else None
    if not is_path(name):
        try:
            return _of_folder(hub_folder(name, local_only=True, with_code=trust), trust, adapters)
        except StorageError:  # not in the hub's cache, or only a part of it
            return None
    return _of_folder(Path(name).expanduser(), trust, adapters)


def _of_folder(folder: Path, trust: bool, adapters: tuple[Path, ...]) -> Pretrained | None:
    if saved_kind(folder) == "model":
        return load_outline(folder, trust_remote_code=trust)
    config = check_adapter_files(folder)
    base = find_base(folder, config["base_model_name_or_path"], adapters)
    with base_model_of(folder, base):
        return _skeleton(base, trust, (*adapters, folder.resolve()))
