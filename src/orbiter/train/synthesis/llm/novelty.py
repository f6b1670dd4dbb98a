"""Measures the similarity of two short texts by their longest common word subsequence (ROUGE-L).

    F = 2 P R / (P + R),  P = LCS / |candidate|,  R = LCS / |reference|

Lin 2004, https://aclanthology.org/W04-1013; Self-Instruct drops a task above 0.7 to any other.
There is no stemming. In a script without spaces each character is a word. The pipeline's own join
finds repetitions in large sets; this measure judges paraphrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from orbiter.train.synthesis.similarity.measure import normalise

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u205e\u3001-\u3003\u3008-\u3011]+")


class Nearest(NamedTuple):
    """The most similar of several texts."""

    similarity: float
    """ROUGE-L F-measure in [0, 1]; 0 if there is nothing to compare with."""
    text: str


def rouge_l(first: str, second: str) -> float:
    """Return the F-measure of two texts; symmetric, 1 for the same words in the same order."""
    return _rouge_l(words_of(first), words_of(second))


def nearest(text: str, pool: Iterable[str]) -> Nearest:
    """Return the text of the pool that is most similar to `text`."""
    words, best = words_of(text), Nearest(0.0, "")
    for candidate in pool:
        others = words_of(candidate)
        short, long = sorted((len(words), len(others)))
        # The table of a subsequence is quadratic, so most pairs are ruled out by length.
        if short + long and 2 * short / (short + long) <= best.similarity:
            continue  # too low even if the longer text contained the shorter one
        similarity = _rouge_l(words, others)
        if similarity > best.similarity:
            best = Nearest(similarity, candidate)
    return best


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    # A text of nothing but punctuation is still compared with others like it.
    return _PUNCTUATION.sub(" ", normalise(text)).split() or normalise(text).split()


def _rouge_l(first: list[str], second: list[str]) -> float:
    if not first or not second:
        return 0.0
    # row[i]: longest common subsequence of the words so far with the first i words of `second`
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = row[index]
            row[index] = diagonal + 1 if word == other else max(above, row[index - 1])
            diagonal = above
    return 2 * row[-1] / (len(first) + len(second))
