"""Load a model by name: the tiny built-in one, the small pretrained one, a folder, or the hub.

Weights are read from safetensors only, and code that comes with a model is never run. The small
model is fetched by `gguf.py`; `policy.py` prepares a loaded model for training.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orbiter.train.engine.models.gguf import SMOLLM2, ensure_smollm2
from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer
from orbiter.train.errors import ConfigError, StorageError, did_you_mean, require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = "base"
"""Folder of the base model inside the folder of an adapter that comes with it."""
TINY = "tiny"
"""Name of the byte-level model that is built in code."""
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model with its tokenizer, ready for sampling or training."""

    model: PreTrainedModel
    """The model, in evaluation mode, on the requested device."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The requested name; loading it again gives the same model."""
    source: str
    """Description of the actual source, for the log and the model card."""


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: Dtype = "float32",
    device: str = "auto",
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> LoadedModel:
    """Load a causal language model by name, with its tokenizer.

    Args:
        name: "tiny", "smollm2-135m", the folder of a saved model or of a PEFT adapter (which is
            merged into its base), or a name on the hub.
        dtype: The dtype of the returned weights.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first accelerator found.
        seed: Seed for the untrained weights of "tiny"; other models ignore it.
        cache_dir: Folder in which the small model is cached; see `cache_folder`.

    Raises:
        StorageError: no model could be loaded by this name; the message lists what was tried.
    """
    wanted = _pick_dtype(dtype)
    from orbiter.train.engine.arithmetic import pick_device

    target = pick_device(device)
    text = os.fspath(name)
    with no_progress_bars():
        if text == TINY:
            model, tokenizer = tiny_model(seed), tiny_tokenizer()
            source = f"built in code, untrained, seed {seed}"
        elif text == SMOLLM2:
            found, source = ensure_smollm2(cache_dir)
            model, tokenizer = _from_pretrained(found, wanted)
        elif _is_path(text):
            model, tokenizer = _from_folder(Path(text), wanted, cache_dir=cache_dir)
            source = f"folder {text}"
        else:
            model, tokenizer = _from_hub(text, wanted)
            source = f"hub {text}"
    return LoadedModel(model.to(device=target, dtype=wanted).eval(), tokenizer, text, source)


def _pick_dtype(dtype: str) -> torch.dtype:
    torch = require("torch", extra="train")
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        hint = did_you_mean(str(dtype), known)
        raise ConfigError(f"dtype must be one of {sorted(known)}, got {dtype!r}{hint}")
    return known[dtype]  # type: ignore[no-any-return]  # torch came through require


def _is_path(name: str) -> bool:
    return Path(name).is_dir() or Path(name).is_absolute() or name.startswith((".", "~"))


def _from_folder(
    folder: Path, dtype: torch.dtype, *, cache_dir: str | os.PathLike[str] | None
) -> tuple[Any, Any]:
    folder = folder.expanduser()
    if (folder / "config.json").is_file():
        return _from_pretrained(folder, dtype)
    if (folder / "adapter_config.json").is_file():
        return _from_adapter(folder, cache_dir=cache_dir)
    found = (
        ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) if folder.is_dir() else ""
    )
    raise StorageError(
        f"{folder} is not a saved model: it should hold config.json with model.safetensors, or "
        f"adapter_config.json with adapter_model.safetensors; "
        + (f"it holds {found}" if found else "it is missing or empty")
    )


def _from_adapter(folder: Path, *, cache_dir: str | os.PathLike[str] | None) -> tuple[Any, Any]:
    """Load a PEFT adapter and merge it into the base model that it names."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise StorageError(f"{folder} has adapter_config.json but no adapter_model.safetensors")
    base = base_of_adapter(folder)
    loaded = load_model(base, device="cpu", cache_dir=cache_dir)
    peft = require("peft", extra="train")
    with warnings.catch_warnings():
        # peft uses a name that transformers 5.23 deprecates and version 6 removes.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        merged = peft.PeftModel.from_pretrained(loaded.model, folder).merge_and_unload()
    if not (folder / "tokenizer_config.json").is_file():
        return merged, loaded.tokenizer
    tokenizer = require("transformers", extra="train").AutoTokenizer.from_pretrained(folder)
    return merged, tokenizer


def base_of_adapter(folder: Path) -> str:
    """Return the folder or the name of the model that an adapter was trained on.

    Raises:
        StorageError: the adapter names none.
    """
    if (folder / BASE / "config.json").is_file():  # wherever the folder has been moved since
        return str(folder / BASE)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise StorageError(
            f"{folder}/adapter_config.json does not name its base_model_name_or_path"
        )
    return str(base)


def _from_hub(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        return _from_pretrained(name, dtype)
    except StorageError as error:
        hint = did_you_mean(name, (TINY, SMOLLM2))
        raise StorageError(
            f"{name!r} is neither a folder, nor {TINY!r} or {SMOLLM2!r}, nor available from the "
            f"hub{hint or ':'} {error}"
        ) from error


def _from_pretrained(name: str | Path, dtype: torch.dtype) -> tuple[Any, Any]:
    transformers = require("transformers", extra="train")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True
        )
        return model, transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"cannot load a causal language model from {name}: {reason}") from error


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars, since loading takes about a second."""
    logging = require("transformers", extra="train").utils.logging
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
