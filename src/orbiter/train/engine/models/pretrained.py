"""Load models, tokenizers and adapters through Transformers and PEFT; no other file does.

Two rules hold here. Python code that comes with a model is not run unless the config says
`trust_remote_code = true`: it is never asked for on standard input, which is what Transformers
does by default. And a model that is damaged is an error that names the file and the tensor:
Transformers itself fills missing tensors with random numbers.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orbiter.train.engine.models.saved_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    FLOATS,
    StoredTensor,
    check_model_files,
    check_plain_files,
    layer_number,
    read_header,
    read_object,
    refuse_reward_model,
)
from orbiter.train.errors import StorageError, TrainError, require

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CAUSAL = "AutoModelForCausalLM"
"""Transformers' class of models that write text."""
OTHER_MEDIA = re.compile(r"image|audio|video|vision", re.IGNORECASE)
"""Marks tokens for other media, for which the text-only release of a model has no embedding."""
MERGEABLE = ("LORA", "LOHA", "LOKR", "ADALORA", "IA3", "OFT", "BOFT", "VERA", "HRA")
"""Kinds of PEFT adapters that can be added to the weights of their base model."""


class Pretrained(NamedTuple):
    """A model with its tokenizer."""

    model: Any
    tokenizer: Any


def load_pretrained(
    folder: Path,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    auto_class: str = CAUSAL,
) -> Pretrained:
    """Load a model and its tokenizer from a folder in Hugging Face's layout.

    `auto_class` is the class of Transformers that reads it; by default that of causal language
    models.

    Raises:
        StorageError: a file is missing or damaged, the files do not belong together, or they are
            those of a reward model and a language model is wanted.
    """
    stored = check_model_files(folder)
    if auto_class == CAUSAL:
        refuse_reward_model(folder)  # its head would be dropped, and a random one answer
    config = load_config(folder, trust_remote_code=trust_remote_code)
    transformers = require("transformers", extra="train")
    with readable(folder):
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with file and tensor
            trust_remote_code=trust_remote_code,
        )
    _check_report(folder, report, stored, config)
    _check_values(folder, model, stored)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    check_tokenizer(folder, tokenizer, model)
    return Pretrained(model, tokenizer)


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:  # noqa: ANN401 - untyped
    """Load a model's configuration.

    Raises:
        StorageError: it is damaged, needs code, or names code outside of the model.
    """
    # Before Transformers sees the config: it would download and run a kernel named there.
    document = read_object(folder / CONFIG)
    _refuse_kernels(folder / CONFIG, document)
    if trust_remote_code:
        log.warning("running the Python code of %s, as trust_remote_code asks for", folder)
    transformers = require("transformers", extra="train")
    with readable(folder):
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:  # noqa: ANN401 - untyped
    """Load a model's tokenizer.

    Raises:
        StorageError: it is missing or damaged, or needs code.
    """
    transformers = require("transformers", extra="train")
    with readable(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    # Without vocabulary files, some versions of Transformers make a tokenizer of special tokens.
    # Such a tokenizer would turn every text into nothing.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise StorageError(f"{folder} has a tokenizer without tokens; tokenizer.json is missing")
    return tokenizer


def load_outline(folder: Path, *, trust_remote_code: bool = False) -> Pretrained:
    """Load a model without its weights, for counting; its files are checked all the same.

    Raises:
        StorageError: as for `load_pretrained`, except for the values of the weights.
    """
    torch = require("torch", extra="train")
    transformers = require("transformers", extra="train")
    stored = check_model_files(folder)
    config = load_config(folder, trust_remote_code=trust_remote_code)
    with readable(folder), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code
        )
    # The weights are not read, so only names and shapes can be compared.
    _check_fit(folder, model, stored)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    check_tokenizer(folder, tokenizer, model)
    return Pretrained(model, tokenizer)


def check_adapter_files(folder: Path) -> dict[str, Any]:
    """Check the files of a PEFT adapter, and return its configuration.

    Raises:
        StorageError: a file is missing or damaged, or the adapter is of a kind that cannot be
            merged, or that would import a module that it names.
    """
    check_plain_files(folder)
    path = folder / ADAPTER_CONFIG
    config = read_object(path)
    kind = config.get("peft_type")
    if kind not in MERGEABLE:
        raise StorageError(
            f"{path}: peft_type is {kind!r}, and only adapters that can be merged into the weights "
            f"are supported: {', '.join(MERGEABLE)}"
        )
    if config.get("megatron_config"):
        raise StorageError(
            f"{path}: megatron_config makes PEFT import the module that megatron_core names, here "
            f"{config.get('megatron_core')!r}, which could run any code; remove it"
        )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise StorageError(f"{path} does not name its base_model_name_or_path, got {base!r}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise StorageError(f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}")
    read_header(folder / ADAPTER_WEIGHTS)
    return config


def merge_adapter(folder: Path, model: Any) -> Any:  # noqa: ANN401 - transformers is untyped
    """Return the base model with a PEFT adapter added to its weights.

    Raises:
        StorageError: the adapter is damaged, or does not belong to this base model.
    """
    peft = require("peft", extra="train")
    path = folder / ADAPTER_WEIGHTS
    stored = read_header(path)
    with readable(folder), warnings.catch_warnings():
        # peft uses a name that transformers 5.23 deprecates and version 6 removes.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # It only warns about missing tensors, and they are an error below.
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        adapted = peft.PeftModel.from_pretrained(model, folder, local_files_only=True)
        tensors = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT would leave missing adapter weights at their random start.
    for name in tensors:
        if name not in stored:
            raise StorageError(f"{path} lacks tensor {name!r}, which {ADAPTER_CONFIG} calls for")
    for name in stored:
        if name not in tensors and ("lora_" in name or "lokr_" in name or "loha_" in name):
            raise StorageError(
                f"{path}: tensor {name!r} does not exist in the base model; the adapter belongs to "
                "another one"
            )
    _check_finite(tensors, dict.fromkeys(tensors, path), path)
    with readable(folder):
        return adapted.merge_and_unload()


def check_tokenizer(folder: Path, tokenizer: Any, model: Any) -> None:  # noqa: ANN401 - untyped
    """Check that every token that can be encoded has a row in the model's embedding.

    Raises:
        StorageError: names the token, its id, and the embedding.
    """
    with readable(folder):
        rows = int(model.get_input_embeddings().weight.shape[0])
    # Ids beyond the embedding would fail inside the first forward pass, far from the cause.
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= rows}
    for token_id, token in sorted(beyond.items()):
        if not OTHER_MEDIA.search(token):
            raise StorageError(
                f"the tokenizer of {folder} does not fit its weights: token {token!r} has id "
                f"{token_id}, and the embedding ({_embedding_name(model)}) has {rows} rows; use "
                "the tokenizer that belongs to the model"
            )
    # Checked against the embedding, since an id that cannot be sampled never stops an answer.
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not 0 <= end < rows:
            raise StorageError(
                f"{folder} names eos_token_id {end}, and the embedding ({_embedding_name(model)}) "
                f"has {rows} rows: an answer would never end; correct generation_config.json"
            )


@contextlib.contextmanager
def readable(folder: Path | str) -> Iterator[None]:
    """Raise whatever a library raises about a model as a `StorageError` that names the folder."""
    try:
        yield
    except TrainError:
        raise
    except MemoryError as error:
        raise StorageError(f"{folder} needs more memory than this machine has") from error
    except BaseException as error:
        # A damaged or unsupported model fails anywhere in a library, with an error of any type;
        # the libraries that are written in Rust panic, which is no `Exception`.
        # Rust panics reach Python as PanicException, which inherits from BaseException only.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        # The only hint in transformers' errors; it has no error class for this case.
        if "trust_remote_code" in reason:
            raise StorageError(
                f"{folder} needs Python code that comes with the model, which is not run; read the "
                "code, and if you trust it, set trust_remote_code = true in the config"
            ) from error
        name = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise StorageError(
            f"cannot load a causal language model from {folder}: {name}{reason}"
        ) from error


def _check_report(
    folder: Path,
    report: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    config: Any,  # noqa: ANN401 - transformers is untyped
) -> None:
    """Check what Transformers reports about loading: every tensor was there, in its shape."""
    for name, shape, wanted in sorted(report["mismatched_keys"]):
        raise _wrong_shape(folder, stored.get(name), name, tuple(shape), tuple(wanted))
    if missing := sorted(report["missing_keys"]):
        raise _missing(folder, missing)
    if report["error_msgs"]:
        raise StorageError(f"cannot load {folder}: {report['error_msgs'][0]}")
    _check_unused(folder, report["unexpected_keys"], config)


def _check_fit(folder: Path, model: Any, stored: Mapping[str, StoredTensor]) -> None:  # noqa: ANN401
    """Compare stored tensors with the model's own, as far as they have the same names.

    Transformers renames and joins tensors of some architectures while it loads them. Only where
    it does not, every name of the model is a name of the files.
    """
    wanted = dict(model.named_parameters(remove_duplicate=False))
    for name in stored.keys() & wanted.keys():
        shape = tuple(wanted[name].shape)
        if stored[name].shape != shape:
            raise _wrong_shape(folder, stored[name], name, stored[name].shape, shape)
    if not stored.keys() <= wanted.keys():
        return
    present = {id(wanted[name]) for name in stored}  # tied tensors are one object, stored once
    if missing := sorted(name for name, tensor in wanted.items() if id(tensor) not in present):
        raise _missing(folder, missing)


def _wrong_shape(
    folder: Path,
    stored: StoredTensor | None,
    name: str,
    shape: tuple[int, ...],
    wanted: tuple[int, ...],
) -> StorageError:
    return StorageError(
        f"{stored.file if stored else folder}: tensor {name!r} has shape {list(shape)}, and "
        f"{CONFIG} calls for {list(wanted)}; the two do not belong together"
    )


def _missing(folder: Path, names: list[str]) -> StorageError:
    return StorageError(
        f"the weights in {folder} are incomplete: {len(names)} tensors are missing that {CONFIG} "
        f"calls for, the first is {names[0]!r}; save or download the model again"
    )


def _check_unused(folder: Path, unused: set[str], config: Any) -> None:  # noqa: ANN401
    """Refuse weights of layers that the config does not have; report other unused ones."""
    layers = getattr(config, "num_hidden_layers", None)
    for name in sorted(unused):
        number = layer_number(name)
        if isinstance(layers, int) and number is not None and number >= layers:
            raise StorageError(
                f"{folder / CONFIG} asks for num_hidden_layers={layers}, and the weights hold "
                f"tensor {name!r} of a further layer; the two do not belong together"
            )
    if unused:
        log.warning(
            "%s: the model does not use %d of its tensors, such as %r",
            *(folder, len(unused), min(unused)),
        )


def _check_values(folder: Path, model: Any, stored: Mapping[str, StoredTensor]) -> None:  # noqa: ANN401
    """Check that the loaded weights are numbers that one can compute with."""
    parameters = dict(model.named_parameters())
    quantised = getattr(model, "hf_quantizer", None) is not None
    for name in stored.keys() & parameters.keys():
        if not quantised and stored[name].dtype not in FLOATS:
            raise StorageError(
                f"{stored[name].file}: tensor {name!r} has type {stored[name].dtype}; weights must "
                f"be one of {', '.join(FLOATS)}"
            )
    files = {name: tensor.file for name, tensor in stored.items()}
    _check_finite(parameters, files, folder)


def _check_finite(
    tensors: Mapping[str, torch.Tensor], files: Mapping[str, Path], fallback: Path
) -> None:
    torch = require("torch", extra="train")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or torch.isfinite(tensor.detach().sum()):
            continue  # a sum is much cheaper than looking at every number
        wrong = int((~torch.isfinite(tensor.detach())).sum())
        # A sum of finite numbers may overflow; then no single number is wrong.
        if wrong:
            raise StorageError(
                f"{files.get(name, fallback)}: tensor {name!r} holds {wrong:,} numbers that are "
                "NaN or infinite; save or download the model again"
            )


def _refuse_kernels(path: Path, value: object, name: str = "") -> None:
    """Refuse a config whose attention is code on the hub ("org/kernel"), at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            below = name if name.endswith("_implementation") else str(key)
            _refuse_kernels(path, inner, below)
    elif name.endswith("_implementation") and isinstance(value, str) and "/" in value:
        raise StorageError(
            f"{path}: {name} names {value!r}, a kernel that would be downloaded and run; remove it"
        )


def _embedding_name(model: Any) -> str:  # noqa: ANN401 - transformers is untyped
    embedding = model.get_input_embeddings().weight
    named = model.named_parameters(remove_duplicate=False)
    return next((name for name, tensor in named if tensor is embedding), "the input embedding")
