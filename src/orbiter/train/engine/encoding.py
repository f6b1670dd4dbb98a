"""Turn text into token ids, so that texts joined later tokenise as the model would see them.

A tokenizer may add tokens at either end of a text: a beginning, an end, or the space
that SentencePiece puts before the first word. In the middle of a chat these must not appear.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 64
"""Characters before a seam that are encoded with the text after it; tokens do not reach further."""


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text; special tokens in it are recognised, none are added."""
    # The trainer itself reports a prompt that is too long. Only Hugging Face's tokenizers warn.
    quiet = {"verbose": False} if hasattr(type(tokenizer), "added_tokens_decoder") else {}
    token_ids: list[int] = tokenizer(text, add_special_tokens=False, **quiet).input_ids
    return token_ids


def encode_opening(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text that the model is to continue.

    A token that the tokenizer puts at the beginning is kept. One at the end is removed, because it
    would end the text before the answer.
    """
    token_ids: list[int] = tokenizer(text, verbose=False).input_ids
    # Some tokenizers wrap a text ([CLS] ... [SEP], or <s> ... </s>): find the text's own tokens
    # in it.
    plain = encode(tokenizer, text)
    for start in range(len(token_ids) - len(plain) + 1) if plain else ():
        if token_ids[start : start + len(plain)] == plain:
            return token_ids[: start + len(plain)]
    # The text was tokenised differently inside the wrapping, so only the end is cut.
    ends = {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)} - {None}
    while token_ids and token_ids[-1] in ends:
        token_ids = token_ids[:-1]
    return token_ids


def encode_after(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int]:
    """Return the token ids of a text that follows another one, whose tokens are fixed by then.

    Only a tokenizer that begins every text with a space needs the text before it. If a token would
    span the seam, the text is encoded as if it followed something else.
    """
    if not before or not _adds_space(tokenizer):
        return encode(tokenizer, text)
    # If a token spans the real seam, neutral contexts are tried.
    for context in (before[-CONTEXT:], "a", "\n"):
        head, whole = encode(tokenizer, context), encode(tokenizer, context + text)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return encode(tokenizer, text)


def marks_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that are matched as a whole in any text, such as `<|im_end|>`, with ids."""
    marks = {str(token): token_id for token_id, token in _added(tokenizer).items()}
    if tokenizer.all_special_ids:
        marks |= zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False)
    return marks


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the tokens that decoding without special tokens leaves out."""
    added = [token_id for token_id, token in _added(tokenizer).items() if token.special]
    return frozenset({*tokenizer.all_special_ids, *added})


def _added(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, Any]:
    """Return the tokens beside the vocabulary proper; a tokenizer that is not HF's has none."""
    return getattr(tokenizer, "added_tokens_decoder", {})


@functools.lru_cache(maxsize=16)
def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a text has other tokens at its beginning than in the middle of another."""
    if not _added(tokenizer):
        return False
    # A newline never merges with letters, so any difference comes from the tokenizer's prefix.
    head, whole = encode(tokenizer, "\n"), encode(tokenizer, "\nab")
    return whole[: len(head)] != head or whole[len(head) :] != encode(tokenizer, "ab")


class AnswerTexts(NamedTuple):
    """A sampled answer as text, without the token that ended it."""

    text: str
    """Without special tokens."""
    raw: str
    """With special tokens, such as `[TOOL_CALLS]`."""


def texts_of_answers(
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Sequence[int]],
    *,
    stops: frozenset[int],
) -> list[AnswerTexts]:
    """Return sampled answers as text."""
    special = special_ids(tokenizer)
    texts = []
    for answer in answers:
        # Only the last token can be a stop token: sampling ends at the first one.
        ended = bool(answer) and answer[-1] in stops
        kept = list(answer[:-1] if ended else answer)
        text: str = tokenizer.decode(kept, skip_special_tokens=True)
        # The second decoding is only needed if some special token was really drawn.
        raw = text if special.isdisjoint(kept) else str(tokenizer.decode(kept))
        texts.append(AnswerTexts(text, raw))
    return texts
