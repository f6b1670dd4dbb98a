"""How alike two short texts are, by the longest common subsequence of their words (ROUGE-L).

    F = 2 P R / (P + R),  P = LCS / |candidate|,  R = LCS / |reference|

Lin 2004, https://aclanthology.org/W04-1013; Self-Instruct drops a task above 0.7 to any other. Left
out: stemming. The pipeline's own join finds repetitions in large sets; this one judges paraphrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_WORD = re.compile(r"\w+")


class Nearest(NamedTuple):
    """The most similar of some texts."""

    similarity: float
    """ROUGE-L F-measure in [0, 1]; 0 where there is nothing to compare with."""
    text: str


def rouge_l(one: str, other: str) -> float:
    """Return the F-measure of two texts; symmetric, 1 for the same words in the same order."""
    return _rouge_l(words_of(one), words_of(other))


def nearest(text: str, pool: Iterable[str]) -> Nearest:
    """Return the text of the pool that is most like `text`."""
    words, best = words_of(text), Nearest(0.0, "")
    for other in pool:
        theirs = words_of(other)
        short, long = sorted((len(words), len(theirs)))
        if short + long and 2 * short / (short + long) <= best.similarity:
            continue  # not even if the longer text contained the shorter one
        similarity = _rouge_l(words, theirs)
        if similarity > best.similarity:
            best = Nearest(similarity, other)
    return best


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return _WORD.findall(text.lower())


def _rouge_l(one: list[str], other: list[str]) -> float:
    if not one or not other:
        return 0.0
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, theirs in enumerate(other, start=1):
            above = row[place]
            row[place] = before + 1 if word == theirs else max(above, row[place - 1])
            before = above
    return 2 * row[-1] / (len(one) + len(other))
