"""Describe a byte-level BPE tokenizer in the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orbiter.train.engine.models.gguf_file import Integers, Value
from orbiter.train.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
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
    # Byte fallback marks SentencePiece's BPE, whose merges have other rules.
    if model["type"] != "BPE" or model.get("byte_fallback") or not _is_byte_level(spec):
        kind = "SentencePiece BPE" if model.get("byte_fallback") else model["type"]
        raise ConfigError(
            f"a {kind} tokenizer cannot be written as GGUF, only byte-level BPE as in Llama 3, "
            "SmolLM and Qwen; llama.cpp's convert_hf_to_gguf.py has further kinds"
        )
    # Older tokenizer.json files hold a merge as one string, newer ones as a pair.
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(spec) if merges else "gpt-2",
        **_tokens(spec, vocabulary),
        "tokenizer.ggml.merges": merges or [NEVER],
        **_special(tokenizer, stops),
    }
    template = tokenizer.chat_template
    if isinstance(template, str):
        metadata["tokenizer.chat_template"] = template
    return metadata


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
    tokens = [f"[PAD{place}]" for place in range(vocabulary)]
    kinds = [UNUSED] * vocabulary
    for text, place in spec["model"]["vocab"].items():
        tokens[place], kinds[place] = text, NORMAL
    for added in spec["added_tokens"]:
        place = added["id"]
        if place >= vocabulary:
            raise ConfigError(
                f"the token {added['content']!r} has id {place}, and the model has {vocabulary} "
                "embeddings; resize them before exporting"
            )
        tokens[place] = added["content"]
        kinds[place] = CONTROL if added["special"] else USER_DEFINED
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Integers(kinds),
    }


def _special(tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]) -> dict[str, Value]:
    """Return the ids of special tokens, and whether texts begin or end with them."""
    metadata: dict[str, Value] = {}
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in names.items():
        place = getattr(tokenizer, f"{ours}_token_id", None)
        if place is not None:
            metadata[f"tokenizer.ggml.{theirs}_token_id"] = int(place)
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
    metadata["tokenizer.ggml.add_space_prefix"] = False
    return metadata
