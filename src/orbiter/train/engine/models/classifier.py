"""Reward models as Transformers' sequence classifiers with one label: save and load them.

Such a folder holds the body of a language model and a linear layer `score` on the state after the
last token that is not padding. The vocabulary head, which a score does not need, is not in it.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from orbiter.train.engine.arithmetic import pick_device
from orbiter.train.engine.models.download import hub_folder
from orbiter.train.engine.models.export import Card, card_text, merged_model, saved_model
from orbiter.train.engine.models.load import is_path, no_progress_bars
from orbiter.train.engine.models.pretrained import load_pretrained, readable
from orbiter.train.engine.models.saved_files import CONFIG, holds_reward_model
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.turn_end import stop_token_ids
from orbiter.train.errors import ConfigError, StateError, StorageError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO_CLASS = "AutoModelForSequenceClassification"
AGREEMENT = 1e-3
"""Difference between our score and the classifier's on a probe that counts as rounding error."""
PROBE = (1, 5, 9, 2)


class LoadedClassifier(NamedTuple):
    """A sequence classifier as the engine uses it."""

    model: Any
    """A causal language model with the classifier's body; its vocabulary head is unused."""
    tokenizer: Any
    head: nn.Linear
    pad_token_id: int | None
    """The score is read at the last token that is not this one."""


def is_classifier(name: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a sequence classifier; False for a name that is no folder."""
    return holds_reward_model(Path(name).expanduser())


def load_classifier(
    name: str | os.PathLike[str], *, device: str = "auto", trust_remote_code: bool = False
) -> LoadedClassifier:
    """Load a sequence classifier with one label from a folder or by its name on the hub.

    Raises:
        StorageError: there is no such model, or it is damaged, or it is not such a classifier.
    """
    text = os.fspath(name)
    folder = Path(text).expanduser() if is_path(text) else hub_folder(text)
    if not is_classifier(folder):
        raise StorageError(
            f"{folder} is not a reward model: its {CONFIG} must name a class that ends in "
            "ForSequenceClassification; RewardModelTrainer saves such folders"
        )
    with no_progress_bars():
        model, tokenizer = load_pretrained(
            folder, torch.float32, trust_remote_code=trust_remote_code, auto_class=AUTO_CLASS
        )
    if model.config.num_labels != 1:
        raise StorageError(
            f"{folder} gives {model.config.num_labels} numbers for a text, and a reward model "
            "gives one (num_labels=1)"
        )
    head = _head_of(model, folder)
    with readable(folder):
        causal = _as_causal(model).to(pick_device(device))
        return LoadedClassifier(causal, tokenizer, head, _text_config(model).pad_token_id)


def save_classifier(
    policy: Policy, path: str | os.PathLike[str], card: Card, *, pad_token_id: int | None
) -> Path:
    """Write a policy with a head for scores as a sequence classifier, completely or not at all.

    Adapters are added to the weights.

    Raises:
        StorageError: `path` exists and is not a saved model, or cannot be written.
        TrainingError: the weights are not finite.
        ConfigError: Transformers has no sequence classifier of this architecture.
    """
    with saved_model(policy, path) as (folder, target):
        made = as_classifier(policy, pad_token_id=pad_token_id)
        made.save_pretrained(folder)
        tokenizer = copy.deepcopy(policy.tokenizer)
        # The classifier finds the last token by its padding id, so both files must agree on it.
        if pad_token_id is not None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card_text(card, policy, merge=True), encoding="utf-8")
    return target


def as_classifier(policy: Policy, *, pad_token_id: int | None) -> Any:  # noqa: ANN401 - untyped
    """Return Transformers' sequence classifier with the weights of a policy and its head.

    Raises:
        ConfigError: Transformers has none of this architecture, or it reads its score elsewhere.
    """
    if policy.value_head is None:
        raise StateError("this policy has no head for scores: make it with value_head=")
    plain = merged_model(policy)
    made = empty_classifier(plain.config, pad_token_id=pad_token_id)
    # The body is shared, not copied: only the head differs between the two classes.
    setattr(made, made.base_model_prefix, plain.base_model)
    made.get_submodule(_head_name(made)).weight = policy.value_head.weight
    # Dropout would make the two scores differ.
    made.eval()
    # Transformers' classifiers differ in where they read the score; the probe shows it.
    with torch.no_grad():
        probe = torch.tensor([PROBE], device=policy.device)
        probe = probe % _text_config(plain).vocab_size
        states = plain.base_model(probe, use_cache=False).last_hidden_state
        wanted = float(policy.value_head(states.float())[0, -1])
        have = float(made(probe).logits[0, 0])
    if not abs(wanted - have) <= AGREEMENT:
        raise ConfigError(
            f"Transformers' {type(made).__name__} gives the score {have:.4g} where this model "
            f"gives {wanted:.4g}: it does not read it at the last token, so a reward model of this "
            "architecture cannot be saved; train one of another architecture"
        )
    return made


def empty_classifier(config: Any, *, pad_token_id: int | None) -> Any:  # noqa: ANN401 - untyped
    """Return a sequence classifier of a model's architecture without weights.

    Raises:
        ConfigError: Transformers has none with a linear layer on the last state.
    """
    transformers = require("transformers", extra="train")
    config = copy.deepcopy(config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = pad_token_id
    config.use_cache = True
    try:
        # On meta no memory is allocated: the body and the head are replaced right after.
        with torch.device("meta"):
            made = transformers.AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=False
            )
    except ValueError as error:
        raise ConfigError(
            f"Transformers has no sequence classifier for model type {config.model_type!r}, so a "
            "reward model cannot be made of it; use a model of the Llama, Qwen, Gemma, Mistral or "
            "GPT-2 families"
        ) from error
    _head_name(made)
    return made


def pad_token_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return a token to pad reward models with: one that ends no answer, if there is one.

    A classifier reads its score at the last token that is not the padding. Many chat models pad
    with the token that ends a turn, which would hide where an answer ends.
    """
    ends = stop_token_ids(tokenizer)
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    named = [each for each in candidates if each is not None]
    # Better a padding token that ends answers than none: without one a batch cannot be scored.
    return next((each for each in named if each not in ends), named[0] if named else None)


def _as_causal(model: Any) -> Any:  # noqa: ANN401 - untyped
    """Return a causal language model with a classifier's body; its head is the embedding."""
    transformers = require("transformers", extra="train")
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
    setattr(made, made.base_model_prefix, model.base_model)
    output = made.get_output_embeddings()
    output.weight = made.get_input_embeddings().weight
    if getattr(output, "bias", None) is not None:
        # The head is never used, but the class insists on a bias of the right size.
        output.bias = nn.Parameter(torch.zeros(output.weight.shape[0]))
    return made.eval()


def _head_of(model: Any, folder: Path) -> nn.Linear:  # noqa: ANN401 - untyped
    try:
        head: nn.Linear = model.get_submodule(_head_name(model))
    except ConfigError as error:
        raise StorageError(f"{folder} is not a reward model that can be used: {error}") from error
    return head


def _head_name(model: Any) -> str:  # noqa: ANN401 - untyped
    """Return the name of the linear layer that gives a classifier's score.

    Raises:
        ConfigError: there are further layers on the body.
    """
    body = f"{model.base_model_prefix}."
    own: list[str] = [name for name, _ in model.named_parameters() if not name.startswith(body)]
    # Every parameter outside the body belongs to the head; more than one means a deeper head.
    names = [name.removesuffix(".weight") for name in own]
    if len(names) != 1 or not isinstance(model.get_submodule(names[0]), nn.Linear):
        raise ConfigError(
            f"{type(model).__name__} has more than a linear layer on the language model "
            f"({', '.join(own[:4])}), which reward models here do not support"
        )
    return names[0]


def _text_config(model: Any) -> Any:  # noqa: ANN401 - untyped
    return model.config.get_text_config()
