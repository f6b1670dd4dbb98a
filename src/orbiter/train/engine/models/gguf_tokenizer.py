"""Describe a BPE tokenizer in the metadata of a GGUF file: byte-level BPE, or SentencePiece's.

What is special about SentencePiece is in `gguf_sentencepiece.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orbiter.train.engine.models.gguf_file import Integers, Value
from orbiter.train.engine.models.gguf_sentencepiece import (
    BYTES,
    is_sentencepiece,
    puts_space_first,
    scores_of,
)
from orbiter.train.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, as llama.cpp numbers them."""
NEVER = "\u0100 \u0100"
"""A merge of two zero bytes whose result is no token, so it never applies. llama.cpp refuses a file
without merges, and a tokenizer of single bytes has none."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""The patterns that text is split by before merging, and llama.cpp's name of each."""
KNOWN = ("gpt-2", "smollm", *PATTERNS.values())


def tokenizer_metadata(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int, stops: frozenset[int]
) -> dict[str, Value]:
    """Return the tokenizer's part of the metadata.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vocabulary: Rows of the embedding; ids without a token become unused tokens.
        stops: Tokens that end a turn.

    Raises:
        ConfigError: llama.cpp has no such tokenizer, or it would split text in another way.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} cannot be written as GGUF: it has no tokenizer.json, the "
            "file with the merges"
        )
    spec = json.loads(core.to_str())
    model = spec["model"]
    if is_sentencepiece(spec):
        metadata = _sentencepiece(spec, tokenizer, vocabulary)
    elif model["type"] == "BPE" and _is_byte_level(spec):
        metadata = _byte_level(spec, vocabulary)
    else:
        raise ConfigError(
            f"a {model['type']} tokenizer of this kind cannot be written as GGUF, only byte-level "
            "BPE, as of Llama 3, SmolLM and Qwen, and SentencePiece BPE, as of Llama 2; "
            "llama.cpp's convert_hf_to_gguf.py, run on the model's folder, has further kinds"
        )
    # What is in `metadata` was decided for this kind of tokenizer and takes precedence.
    metadata = {**_special(tokenizer, stops), **metadata}
    template = tokenizer.chat_template
    if isinstance(template, str):
        metadata["tokenizer.chat_template"] = template
    return metadata


def _byte_level(spec: Mapping[str, Any], vocabulary: int) -> dict[str, Value]:
    merges = [" ".join(pair) for pair in _merges(spec)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(spec) if merges else "gpt-2",
        **_tokens(spec, vocabulary),
        "tokenizer.ggml.merges": merges or [NEVER],
        "tokenizer.ggml.add_space_prefix": False,
    }


def _sentencepiece(
    spec: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> dict[str, Value]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        **_tokens(spec, vocabulary),
        "tokenizer.ggml.scores": scores_of(spec, _merges(spec), vocabulary),
        "tokenizer.ggml.add_space_prefix": puts_space_first(spec, tokenizer),
    }


def _merges(spec: Mapping[str, Any]) -> list[list[str]]:
    """Return the merges as pairs; older tokenizer.json files hold each as one string."""
    return [
        pair.split(" ", 1) if isinstance(pair, str) else list(pair)
        for pair in spec["model"]["merges"]
    ]


def pre_tokenizer_name(spec: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of how a tokenizer splits text before merging.

    Raises:
        ConfigError: it has none that is known here.
    """
    normalizer = spec.get("normalizer")
    # NFC leaves ordinary text as it is; other normalisers change what the model reads.
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise ConfigError(
            f"the tokenizer's normaliser {normalizer.get('type')} cannot be written as GGUF: "
            "llama.cpp would read text without it"
        )
    steps = _steps(spec)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in PATTERNS and steps[0]["behavior"] == "Isolated":
            return PATTERNS[pattern]
    # A wrong name would load without an error and split text differently from training.
    raise ConfigError(
        f"the tokenizer splits text by {' and '.join(kinds) or 'nothing'} in a way that has no "
        f"name in GGUF here; known are {', '.join(KNOWN)}"
    )


def _is_byte_level(spec: Mapping[str, Any]) -> bool:
    steps = _steps(spec)
    return bool(steps) and steps[-1]["type"] == "ByteLevel" and not steps[-1]["add_prefix_space"]


def _steps(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pre-tokenizers in their order."""
    first = spec.get("pre_tokenizer")
    if first is None:
        return []
    return list(first["pretokenizers"]) if first["type"] == "Sequence" else [first]


def _tokens(spec: Mapping[str, Any], vocabulary: int) -> dict[str, Value]:
    # The embedding may have more rows than the vocabulary, rounded up for the hardware.
    tokens = [f"[PAD{token_id}]" for token_id in range(vocabulary)]
    kinds, falls_back = [UNUSED] * vocabulary, is_sentencepiece(spec)
    for text, token_id in spec["model"]["vocab"].items():
        tokens[token_id], kinds[token_id] = text, NORMAL
        if falls_back and text in BYTES:
            kinds[token_id] = BYTE
        elif falls_back and text == spec["model"].get("unk_token"):
            kinds[token_id] = UNKNOWN
    for added in spec["added_tokens"]:
        token_id = added["id"]
        if token_id >= vocabulary:
            raise ConfigError(
                f"the token {added['content']!r} has id {token_id}, and the model has {vocabulary} "
                "embeddings; resize them before exporting"
            )
        tokens[token_id] = added["content"]
        if kinds[token_id] != UNKNOWN:
            kinds[token_id] = CONTROL if added["special"] else USER_DEFINED
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Integers(kinds),
    }


def _special(tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]) -> dict[str, Value]:
    """Return the ids of special tokens, and whether texts begin or end with them."""
    metadata: dict[str, Value] = {}
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in names.items():
        token_id = getattr(tokenizer, f"{ours}_token_id", None)
        if token_id is not None:
            metadata[f"tokenizer.ggml.{theirs}_token_id"] = int(token_id)
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    further = sorted(stops - {eos}) if isinstance(eos, int) else sorted(stops)
    if eos is None and further:
        metadata["tokenizer.ggml.eos_token_id"] = further.pop(0)
    if further:  # one more token that ends a turn; llama.cpp knows others by their text
        metadata["tokenizer.ggml.eot_token_id"] = further[0]
    # Find out by trying whether texts begin with bos: the setting has other names in each class.
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    metadata["tokenizer.ggml.add_bos_token"] = ids[: len(ids) - len(plain)] == [
        tokenizer.bos_token_id
    ]
    metadata["tokenizer.ggml.add_eos_token"] = ids[len(plain) :] == [tokenizer.eos_token_id]
    return metadata
