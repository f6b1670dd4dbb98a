"""Load a model by name: the tiny built-in one, the small pretrained one, a folder, or the hub.

This file decides which files a name stands for; `pretrained.py` reads them. The small model is
fetched by `gguf.py`; `policy.py` prepares a loaded model for training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from orbiter.train.engine.models.download import hub_folder
from orbiter.train.engine.models.folder import restore_folder
from orbiter.train.engine.models.gguf import SMOLLM2, ensure_smollm2
from orbiter.train.engine.models.pretrained import (
    Pretrained,
    check_adapter_files,
    check_tokenizer,
    load_pretrained,
    load_tokenizer,
    merge_adapter,
)
from orbiter.train.engine.models.saved_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    WEIGHTS,
)
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
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model by name, with its tokenizer.

    Args:
        name: "tiny", "smollm2-135m", the folder of a saved model or of a PEFT adapter (which is
            merged into its base), or a name on the hub.
        dtype: The dtype of the returned weights.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first accelerator found.
        seed: Seed for the untrained weights of "tiny"; other models ignore it.
        cache_dir: Folder in which the small model is cached; see `cache_folder`.
        trust_remote_code: Run Python code that comes with the model. Never asked for otherwise.

    Raises:
        StorageError: no model could be loaded by this name, or it is damaged; the message names
            the file and the tensor, or lists what was tried.
    """
    wanted = _pick_dtype(dtype)
    from orbiter.train.engine.arithmetic import pick_device

    target = pick_device(device)
    text = os.fspath(name)
    options = _Options(wanted, seed, cache_dir, trust_remote_code)
    with no_progress_bars():
        (model, tokenizer), source = _load(text, options, ())
    return LoadedModel(model.to(device=target, dtype=wanted).eval(), tokenizer, text, source)


def ensure_model(name: str | os.PathLike[str], *, trust_remote_code: bool = False) -> None:
    """Fetch the files of a model, and of the models that an adapter needs, without loading any.

    Raises:
        StorageError: there is no such model; the message lists what was tried.
    """
    with no_progress_bars():
        _ensure(os.fspath(name), trust_remote_code, ())


def _ensure(name: str, trust: bool, adapters: tuple[Path, ...]) -> None:
    if name == TINY:
        return
    if name == SMOLLM2:
        ensure_smollm2(None)
        return
    folder = Path(name).expanduser() if is_path(name) else _hub_files(name, trust)
    if saved_kind(folder) == "adapter":
        config = check_adapter_files(folder)
        base = find_base(folder, config["base_model_name_or_path"], adapters)
        with base_model_of(folder, base):
            _ensure(base, trust, (*adapters, folder.resolve()))


class _Options(NamedTuple):
    """How to load a model, whatever its name is."""

    dtype: torch.dtype
    seed: int
    cache_dir: str | os.PathLike[str] | None
    trust_remote_code: bool


class _Loaded(NamedTuple):
    parts: Pretrained
    source: str


def _load(name: str, options: _Options, adapters: tuple[Path, ...]) -> _Loaded:
    """Load a model by name; `adapters` are the folders whose base it is."""
    if name == TINY:
        parts = Pretrained(tiny_model(options.seed), tiny_tokenizer())
        return _Loaded(parts, f"built in code, untrained, seed {options.seed}")
    if name == SMOLLM2:
        folder, source = ensure_smollm2(options.cache_dir)
        return _Loaded(load_pretrained(folder, options.dtype), source)
    if is_path(name):
        folder = Path(name).expanduser()
        return _Loaded(_from_folder(folder, options, adapters), f"folder {name}")
    return _Loaded(_from_hub(name, options, adapters), f"hub {name}")


def _pick_dtype(dtype: str) -> torch.dtype:
    torch = require("torch", extra="train")
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        hint = did_you_mean(str(dtype), known)
        raise ConfigError(f"dtype must be one of {sorted(known)}, got {dtype!r}{hint}")
    return known[dtype]  # type: ignore[no-any-return]  # torch came through require


def is_path(name: str) -> bool:
    """Return whether a model's name is a folder rather than a name on the hub."""
    # A missing folder written as a path must not be looked up on the hub.
    return Path(name).is_dir() or Path(name).is_absolute() or name.startswith((".", "~"))


def find_base(folder: Path, name: str, adapters: tuple[Path, ...] = ()) -> str:
    """Return the name of an adapter's base model; `adapters` lists the adapters built on this one.

    A relative path is one beside the adapter, or else one in the current folder.

    Raises:
        StorageError: there is no such folder, or the adapters form a ring.
    """
    path = folder / ADAPTER_CONFIG
    # First choice, because absolute paths in the adapter's config break when the folder is moved.
    if (folder / BASE / CONFIG).is_file():  # so that the pair still loads after it was moved
        return str(folder / BASE)
    # Without this check two adapters that name each other would recurse for ever.
    if folder.resolve() in adapters:
        raise StorageError(f"{path} names a base model that is built on this adapter itself")
    if name in (TINY, SMOLLM2) or Path(name).expanduser().is_absolute():
        return name
    if (folder / name).is_dir():
        return str((folder / name).resolve())
    if not Path(name).is_dir() and (name.startswith(".") or name.count("/") > 1):
        raise StorageError(
            f"{path} names the base model {name!r}, a relative path, and there is no such folder "
            f"in {folder} or in {Path.cwd()}; write the base model's full path there"
        )
    return name


@contextlib.contextmanager
def base_model_of(adapter: Path, base: str) -> Iterator[None]:
    """State in errors raised inside the block that they concern an adapter's base model."""
    try:
        yield
    except StorageError as error:
        path = adapter / ADAPTER_CONFIG
        raise StorageError(f"{path} names the base model {base!r}: {error}") from error


def saved_kind(folder: Path) -> Literal["model", "adapter"]:
    """Return whether a folder holds a whole model or an adapter.

    Raises:
        StorageError: it holds neither, or both.
    """
    restore_folder(folder)
    has_config, has_adapter = (folder / CONFIG).is_file(), (folder / ADAPTER_CONFIG).is_file()
    has_weights = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    if has_adapter and has_config and has_weights:
        raise StorageError(
            f"{folder} holds both a model ({CONFIG}) and an adapter ({ADAPTER_CONFIG}), so it is "
            "unclear which is meant; move one of them to another folder"
        )
    if has_adapter:  # some tools save the base model's config beside an adapter
        return "adapter"
    if has_config:
        return "model"
    present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else ""
    raise StorageError(
        f"{folder} is not a saved model: it should hold {CONFIG} with {WEIGHTS}, or "
        f"{ADAPTER_CONFIG} with {ADAPTER_WEIGHTS}; "
        + (f"it holds {present}" if present else "it is missing or empty")
    )


def _from_folder(folder: Path, options: _Options, adapters: tuple[Path, ...]) -> Pretrained:
    if saved_kind(folder) == "adapter":
        return _from_adapter(folder, options, adapters)
    trust = options.trust_remote_code
    return load_pretrained(folder, options.dtype, trust_remote_code=trust)


def _from_adapter(folder: Path, options: _Options, adapters: tuple[Path, ...]) -> Pretrained:
    """Load a PEFT adapter and merge it into the base model that it names."""
    config = check_adapter_files(folder)
    base = find_base(folder, config["base_model_name_or_path"], adapters)
    # The sum is rounded to the requested dtype once, after merging.
    in_float32 = options._replace(dtype=_pick_dtype("float32"))
    with base_model_of(folder, base):
        model, tokenizer = _load(base, in_float32, (*adapters, folder.resolve())).parts
    merged = merge_adapter(folder, model)
    # An adapter's tokenizer may have further tokens, such as a chat template's marks.
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(folder, trust_remote_code=options.trust_remote_code)
        check_tokenizer(folder, tokenizer, merged)
    return Pretrained(merged, tokenizer)


def _from_hub(name: str, options: _Options, adapters: tuple[Path, ...]) -> Pretrained:
    return _from_folder(_hub_files(name, options.trust_remote_code), options, adapters)


def _hub_files(name: str, trust: bool) -> Path:
    """Return the folder of a model of the hub; missing files are fetched."""
    try:
        return hub_folder(name, with_code=trust)
    except StorageError as error:
        hint = did_you_mean(name, (TINY, SMOLLM2))
        raise StorageError(
            f"{name!r} is neither a folder, nor {TINY!r} or {SMOLLM2!r}, nor available from the "
            f"hub{hint or ':'} {error}"
        ) from error


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
