"""Save a trained policy as a folder that other tools can load: weights, tokenizer, model card.

Full weights use Hugging Face's layout, adapters PEFT's. Adapters on a model that only this package
can make (a built-in one, or another adapter merged into its base) come with that model's weights in
the folder `base`, so that nothing else is needed to load them. The value head, which only another
PPO run could use, is not saved; optimiser state is in checkpoints (`checkpoint.py`).
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orbiter.train.engine.models.folder import staged_folder
from orbiter.train.engine.models.gguf import SMOLLM2
from orbiter.train.engine.models.load import BASE, TINY, no_progress_bars, saved_kind
from orbiter.train.engine.models.pretrained import check_adapter_files
from orbiter.train.engine.models.saved_files import check_model_files
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.session import require_finite
from orbiter.train.engine.turn_end import configured_stops
from orbiter.train.errors import StorageError, require
from orbiter.train.redact import mask_text, secrets_of_the_environment

MODEL_FILES = ("config.json", "adapter_config.json")
"""Files whose presence marks a folder as a saved model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The facts of a run, for the README.md of a saved model."""

    base_model: str
    """Name or folder from which the initial model can be loaded."""
    method: str
    """Training method, in a word or two."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    results: Mapping[str, float] = field(default_factory=dict[str, float])
    """Metrics at the end of the run."""
    data: str = ""
    """Description of the training data."""
    auto_class: str = "AutoModelForCausalLM"
    """The class of Transformers that loads the full weights."""


def save_policy(
    policy: Policy, path: str | os.PathLike[str], card: Card, *, merge: bool = False
) -> Path:
    """Write the policy to `path`, completely or not at all; a saved model there is replaced.

    Args:
        policy: The policy to save.
        path: The folder to create.
        card: The facts for its README.md.
        merge: Add LoRA adapters to the weights and write those, instead of the adapters alone.

    Raises:
        StorageError: `path` exists and is not a saved model, or cannot be written.
        TrainingError: the weights are not finite.
    """
    with saved_model(policy, path) as (folder, target):
        if policy.adapted and not merge:
            _save_adapter(policy, folder, target, card.base_model)
        else:
            with _cache_enabled(policy.model):
                merged_model(policy).save_pretrained(folder)
        _save_beside_weights(policy, folder)
        (folder / "README.md").write_text(card_text(card, policy, merge=merge), encoding="utf-8")
    return target


@contextlib.contextmanager
def saved_model(policy: Policy, path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Yield a temporary folder to write a model into, and the folder that it becomes.

    Raises:
        StorageError: `path` exists and is not a saved model, or cannot be written.
        TrainingError: the weights are not finite.
    """
    # NaN weights would load elsewhere without an error and answer nonsense.
    require_finite(policy)
    target = Path(path)
    if target.exists() and not _replaceable(target):
        raise StorageError(f"{target} already exists and is not a saved model; choose another path")
    with staged_folder(target) as folder, no_progress_bars():
        yield folder, target


def push_to_hub(folder: str | os.PathLike[str], repository: str, *, private: bool = True) -> str:
    """Upload a saved model to the hub and return its URL; no other function uploads anything.

    The account is that of `hf auth login` or HF_TOKEN. If the repository does not exist, it is
    created, as private unless `private=False`.

    Raises:
        StorageError: `folder` does not hold a saved model, or the hub refused the upload.
    """
    source = Path(folder)
    if not any((source / name).is_file() for name in MODEL_FILES):
        # Checked again here: the folder may have been changed since it was saved.
        raise StorageError(f"{source} is not a saved model: there is nothing to upload")
    check = check_model_files if saved_kind(source) == "model" else check_adapter_files
    check(source)
    hub = require("huggingface_hub", extra="train")
    try:
        api = hub.HfApi()
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=source, commit_message="Trained with orbiter-train"
        )
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(
            f"{source} could not be uploaded to {repository}: {reason}; the model is still there"
        ) from error
    return str(made)


def _replaceable(target: Path) -> bool:
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else {""}
    return not names or any(name in names for name in MODEL_FILES)


def _save_adapter(policy: Policy, folder: Path, target: Path, base_model: str) -> None:
    # An adapter's file names its base; a name that only this package knows would not load
    # elsewhere.
    model: Any = policy.model
    base = _loadable(base_model)
    if base is None:
        _save_base(policy, folder / BASE)
        # The final path, not the temporary one that is being written now.
        base = base_model if base_model in (TINY, SMOLLM2) else str(target.resolve() / BASE)
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # The default, "auto", would ask the hub whether the vocabulary has grown; it never does here.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own card, replaced by ours


def _loadable(name: str) -> str | None:
    """Return the name under which Transformers loads a base model; None if it cannot."""
    if name in (TINY, SMOLLM2):
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name  # on the hub
    return str(folder.resolve()) if (folder / "config.json").is_file() else None


def _save_base(policy: Policy, folder: Path) -> None:
    """Write the weights that the adapters are added to."""
    # PEFT wraps each adapted layer, which adds `base_layer` to the names of its weights.
    model: Any = policy.model
    tensors = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.get_base_model().state_dict().items()
        if ".lora_" not in name
    }
    with _cache_enabled(model):
        model.get_base_model().save_pretrained(folder, state_dict=tensors)
    _save_beside_weights(policy, folder)


def _save_beside_weights(policy: Policy, folder: Path) -> None:
    """Write the tokenizer, and that generation stops at every token that ended answers here."""
    policy.tokenizer.save_pretrained(folder)
    model: Any = policy.model
    if model.generation_config is None:
        return
    config = copy.deepcopy(model.generation_config)
    # Chat models often end turns with a token that their generation config does not list.
    if policy.stop_token_ids - configured_stops(model):
        config.eos_token_id = sorted(policy.stop_token_ids)
    config.save_pretrained(folder)


@contextlib.contextmanager
def _cache_enabled(model: Any) -> Iterator[None]:  # noqa: ANN401 - transformers' or peft's
    """Save a configuration that uses the cache: off in training, but needed for generation."""
    used = model.config.use_cache
    model.config.use_cache = True
    try:
        yield
    finally:
        model.config.use_cache = used


def merged_model(policy: Policy) -> Any:  # noqa: ANN401 - transformers'
    """Return the plain model; adapters are added to the weights of a copy."""
    model: Any = policy.model
    # A copy, since removing the adapters again would leave rounding errors in the weights.
    return copy.deepcopy(model).merge_and_unload() if policy.adapted else model


def card_text(card: Card, policy: Policy, *, merge: bool = False) -> str:
    """Return the model card: what the model is, how to load it, and how it was trained."""
    adapter = policy.adapted and not merge
    form = "a LoRA adapter (PEFT)" if adapter else "full weights"
    front = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        f"base_model: {card.base_model}",
        "tags:",
        *(f"- {tag}" for tag in ("orbiter-train", card.method.lower())),
        "---",
    ]
    body = [
        f"# {card.base_model}, trained by {card.method}",
        f"This folder holds {form}. It was trained with orbiter-train {version('orbiter-train')} "
        f"(torch {version('torch')}, transformers {version('transformers')}).",
        "## Load it",
        _how_to_load(card, policy, adapter=adapter),
        "## Data",
        card.data or "Not recorded.",
        "## Results",
        _table(("metric", "value"), [(k, f"{v:.6g}") for k, v in card.results.items()]),
        "## Settings",
        _table(("setting", "value"), [(k, f"`{v}`") for k, v in card.settings.items()]),
    ]
    text = "\n".join(front) + "\n\n" + "\n\n".join(body) + "\n"
    # Settings may contain a URL or header with a key, and cards are published.
    return mask_text(text, secrets_of_the_environment())


def _how_to_load(card: Card, policy: Policy, *, adapter: bool) -> str:
    """Return code that loads the folder with Transformers and PEFT alone."""
    own_base = adapter and _loadable(card.base_model) is None
    other_stops = bool(policy.stop_token_ids - configured_stops(policy.model))
    names = [card.auto_class] if own_base or not adapter else []
    names += ["AutoTokenizer", *(["GenerationConfig"] if adapter and other_stops else [])]
    lines = [f"from transformers import {', '.join(names)}", ""]
    if own_base:
        lines = ["from peft import PeftModel", *lines]
        lines.append(f'base = AutoModelForCausalLM.from_pretrained("this/folder/{BASE}")')
        lines.append('model = PeftModel.from_pretrained(base, "this/folder")')
    elif adapter:
        lines = ["from peft import AutoPeftModelForCausalLM", *lines]
        lines.append('model = AutoPeftModelForCausalLM.from_pretrained("this/folder")')
    else:
        lines.append(f'model = {card.auto_class}.from_pretrained("this/folder")')
    if "GenerationConfig" in names:
        lines.append('model.generation_config = GenerationConfig.from_pretrained("this/folder")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("this/folder")')
    return "\n".join(["```python", *lines, "```"])


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return "None recorded."
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines)
