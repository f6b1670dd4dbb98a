"""Describe SentencePiece's BPE, as of Llama 2, in the metadata of a GGUF file.

llama.cpp merges two neighbours whenever their text is a token, the token with the highest score
first, and among equals the leftmost (`llm_tokenizer_spm` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp). A tokenizer.json lists pairs
in their order instead. Both give the same tokens if every split of a token into two others is a
pair, and the pairs of a token follow each other; Transformers' converter writes such lists.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from orbiter.train.engine.models.gguf_file import Floats
from orbiter.train.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "\u2581"
"""The visible character that replaces a space."""
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of single bytes, for characters that have no token."""
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
WAY_OUT = (
    "llama.cpp's convert_hf_to_gguf.py, run on the model's folder with its original "
    "tokenizer.model, has further kinds"
)


def is_sentencepiece(spec: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer.json describes SentencePiece's BPE: it falls back to bytes."""
    model = spec["model"]
    return bool(model["type"] == "BPE" and model.get("byte_fallback"))


def scores_of(spec: Mapping[str, Any], pairs: Sequence[Sequence[str]], vocabulary: int) -> Floats:
    """Return the score of every token, by which llama.cpp merges in the order of the pairs.

    Args:
        spec: The content of tokenizer.json.
        pairs: Its merges, the first ones first.
        vocabulary: Number of scores; ids without a token get 0.

    Raises:
        ConfigError: no scores give the order of the pairs, or a byte has no token.
    """
    tokens: Mapping[str, int] = spec["model"]["vocab"]
    if missing := sorted(BYTES - tokens.keys()):
        _refuse(f"has no token for {len(missing)} of the 256 bytes, such as {missing[0]}")
    if spec["model"].get("ignore_merges"):
        _refuse("takes whole words before it merges (ignore_merges)")
    rank = _ranks(pairs)
    if strange := rank.keys() - tokens.keys():
        _refuse(f"merges {min(strange)!r}, which is no token")
    apart = {token["content"] for token in spec["added_tokens"]} | BYTES
    _check_complete(tokens.keys() - apart, tokens, {(left, right) for left, right in pairs})
    scores = [0.0] * vocabulary
    for text, place in rank.items():
        # The earlier a pair is in the list, the higher its score.
        scores[tokens[text]] = -float(place)
    return Floats(scores)


def _ranks(pairs: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the place of each merged text in the order of the merges."""
    rank: dict[str, int] = {}
    last = ""
    for left, right in pairs:
        text = left + right
        # Its score is a single number, so all its merges must have the same priority.
        if text != last and text in rank:
            _refuse(f"merges {text!r} at two places of its order, with other merges between them")
        rank.setdefault(text, len(rank))
        last = text
    return rank


def _check_complete(
    texts: Iterable[str], tokens: Container[str], pairs: Container[tuple[str, str]]
) -> None:
    """Refuse a tokenizer that never merges two tokens whose texts together are a token."""
    for text in texts:
        # By every split, since llama.cpp merges any two neighbours whose text is a token.
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if (left, right) not in pairs and left in tokens and right in tokens:
                _refuse(f"never merges {left!r} and {right!r}, as llama.cpp would")


def puts_space_first(spec: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether llama.cpp must put a space before text, as this tokenizer does.

    llama.cpp puts it before the first text and after each special token, or nowhere.

    Raises:
        ConfigError: the tokenizer changes text in another way.
    """
    steps = _listed(spec.get("normalizer"), "normalizers")
    splits = _listed(spec.get("pre_tokenizer"), "pretokenizers")
    if not splits and steps == [_PREPEND, _REPLACE]:
        late = [token["content"] for token in spec["added_tokens"] if token.get("normalized")]
        if late:
            _refuse(f"looks for the token {late[0]!r} only after it has replaced spaces")
        return True
    # Gemma also splits at spaces, of which the replacement has left none.
    if steps == [_REPLACE] and (not splits or _splits_at_spaces(splits)):
        return False
    if steps or len(splits) != 1 or splits[0]["type"] != "Metaspace":
        kinds = [step["type"] for step in [*steps, *splits]]
        _refuse(f"changes text by {' and '.join(kinds) or 'nothing'}, which llama.cpp does not")
    if splits[0]["replacement"] != SPACE or splits[0].get("split", True):
        _refuse("splits text at spaces before it merges")
    scheme = splits[0]["prepend_scheme"]
    if scheme != "first":
        return bool(scheme == "always")
    # Only text at the very beginning gets the space. Chat prompts begin with a special token, so
    # none of their text gets it.
    if not tokenizer.chat_template:
        return True
    _check_chat(tokenizer, {token["content"] for token in spec["added_tokens"]})
    return False


def _check_chat(tokenizer: PreTrainedTokenizerBase, special: set[str]) -> None:
    """Refuse a chat template whose prompts begin with text."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prompt = str(tokenizer.apply_chat_template(turns, tokenize=False))
    if not prompt.startswith(tuple(special)):
        _refuse(
            "puts a space before the first text of a prompt but not after a special token, and its "
            "chat template begins with text"
        )


def _splits_at_spaces(splits: Sequence[Mapping[str, Any]]) -> bool:
    return len(splits) == 1 and (
        splits[0]["type"] == "Split" and splits[0]["pattern"] == {"String": " "}
    )


def _listed(step: Mapping[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the steps of a sequence, or the only one."""
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [dict(step)]


def _refuse(why: str) -> NoReturn:
    raise ConfigError(
        f"the SentencePiece tokenizer cannot be written as GGUF: it {why}, so llama.cpp would "
        f"split text differently; {WAY_OUT}"
    )
