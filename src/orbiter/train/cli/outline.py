"""A model's shape without its weights: enough to count tokens and bytes before a run.

Nothing is fetched: of a model that is not on this machine yet there is no outline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orbiter.train.errors import StorageError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orbiter.train.engine.config import EngineConfig
    from orbiter.train.engine.policy import Policy


class Outline(NamedTuple):
    """What can be known of a model before it is loaded."""

    policy: Policy
    """Its modules; the weights take no memory and hold no numbers."""
    tokenizer: PreTrainedTokenizerBase
    weights: int
    """Bytes that loading it will take, in float32, a frozen reference included."""


def outline(config: EngineConfig, *, reference: bool, value_head: bool) -> Outline | None:
    """Return the outline of a config's model; None where it is not on this machine.

    Raises:
        StorageError: the model is a folder that holds none.
    """
    require("torch", extra="train")
    import torch

    from orbiter.train.engine.arithmetic import choose_dtype, pick_device
    from orbiter.train.engine.policy import Policy

    found = _skeleton(config.model)
    if found is None:
        return None
    model, tokenizer = found
    if config.lora_rank:
        from orbiter.train.engine.models.lora import add_lora

        model = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha)
    copies = 2 if reference and not config.lora_rank else 1
    weights = 4 * copies * sum(p.numel() for p in model.parameters())
    device = pick_device(config.device)
    arithmetic = choose_dtype(config.dtype, device)
    head = torch.nn.Linear(model.config.hidden_size, 1, device="meta") if value_head else None
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        forward=_Forward(type(model).__name__),  # type: ignore[arg-type] # asked for its name alone
        reference_forward=None,
        value_head=head,
        dtype=arithmetic.dtype,
        device=device,
        stop_token_ids=frozenset(),
        dtype_reason=arithmetic.reason,
    )
    return Outline(policy, tokenizer, weights)


class _Forward:
    """Stands where the forward pass will: which one it is decides what sampling takes."""

    def __init__(self, family: str) -> None:
        from orbiter.train.engine.forward.fast import FAMILIES

        self.name = "fast" if family in FAMILIES else "generic"


def _skeleton(name: str) -> tuple[Any, Any] | None:
    from orbiter.train.engine.models.download import cache_folder
    from orbiter.train.engine.models.gguf import CACHED, SMOLLM2
    from orbiter.train.engine.models.load import TINY
    from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer

    if name == TINY:
        return tiny_model(), tiny_tokenizer()
    if name == SMOLLM2:
        kept = cache_folder() / CACHED
        return _read(str(kept)) if kept.is_dir() else None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")):
            raise StorageError(f"there is no model in {folder}: no such folder")
        return _read(name)
    adapter = folder / "adapter_config.json"
    if (folder / "config.json").is_file():
        return _read(name)
    if adapter.is_file():
        return _skeleton(str(json.loads(adapter.read_text())["base_model_name_or_path"]))
    raise StorageError(f"{folder} is no saved model: config.json is missing")


def _read(name: str) -> tuple[Any, Any] | None:
    """Read config and tokenizer of a folder, or of the hub's cache on this machine."""
    import torch

    transformers = require("transformers", extra="train")
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model, tokenizer
