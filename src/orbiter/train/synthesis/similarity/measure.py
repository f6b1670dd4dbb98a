"""Defines "similar": the Jaccard similarity of sets of word n-grams, in whole numbers.

This is the definition in plain Python, with which `plain` and `compiled` must agree; they find the
similar texts among many.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from orbiter.train.errors import ConfigError

Shingle: TypeAlias = tuple[str, ...]
"""n neighbouring words; a text of fewer than n words is a single shingle."""

_FROM_THAI_ON = re.compile("[\u0e00-\U0003ffff]")
_UNSPACED = re.compile(
    "(?:"
    # Thai, Lao, Tibetan, Burmese, Khmer: a letter with the vowels and tone marks on it
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"
    # Japanese syllables, Bopomofo, Chinese characters of every plane
    "|[\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff]"
    "|[\uf900-\ufaff\U00020000-\U0003ffff]"
    ")"
    "[\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    "\u0f71-\u0f84\u0f86\u0f87\u0f8d-\u0fbc\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u17b4-\u17d3\u17dd"
    "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef]*"
)


class Match(NamedTuple):
    """The evidence that a text is a near-duplicate."""

    witness: int
    """Number of the most similar text; the earliest of those, if there are several."""
    shared: int
    """Number of shingles that both texts have."""
    union: int
    """Number of shingles that at least one text has."""

    @property
    def similarity(self) -> float:
        """Return the Jaccard similarity, in [0, 1]."""
        return self.shared / self.union


def normalise(text: str) -> str:
    """Return `text` normalised for comparison: words split by white space, case and form folded.

    In a script that puts no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
    Tibetan) each character, with the marks that belong to it, is a word.
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Only these scripts need the slower search for words.
    if _FROM_THAI_ON.search(folded) is None:  # Latin, Greek, Cyrillic, Hebrew, Arabic: all spaced
        return folded
    return _UNSPACED.sub(r" \g<0> ", folded)


@dataclass(frozen=True, slots=True)
class Measure:
    """The threshold and the n-gram length that decide when two texts are similar.

    The threshold is the decimal as written, not the binary number nearest to it, and every
    comparison is made in whole numbers: 9 shared shingles of 10 reach 0.9.
    """

    threshold: float | Fraction = 0.9
    """Jaccard similarity from which two texts are duplicates, in (0, 1]."""
    ngram: int = 3
    """Number of words in a shingle."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold must lie in (0, 1], got {self.threshold}")
        if self.ngram < 1:
            raise ConfigError(f"ngram must be at least 1 word, got {self.ngram}")

    @property
    def ratio(self) -> tuple[int, int]:
        """Return numerator and denominator of the threshold as it is written in decimal."""
        return _decimal_ratio(self.threshold)

    def shingles(self, text: str) -> frozenset[Shingle]:
        """Return the set of shingles of `text`."""
        words = self.words(text)
        if len(words) < self.ngram:
            return frozenset([tuple(words)])
        # n shifted copies of the words side by side.
        return frozenset(zip(*(words[i:] for i in range(self.ngram)), strict=False))

    def words(self, text: str) -> list[str]:
        """Return the words of `text` as they are compared."""
        return normalise(text).split()

    def least_partner(self, size: int) -> int:
        """Return the least number of shingles that a set similar to one of `size` can have."""
        numerator, denominator = self.ratio
        return -(-numerator * size // denominator)

    def least_shared(self, total: int) -> int:
        """Return how many shingles two sets of `total` shingles must share to be similar.

        |A & B| / |A | B| >= p/q is the same as (p + q) |A & B| >= p (|A| + |B|).
        """
        numerator, denominator = self.ratio
        return -(-numerator * total // (numerator + denominator))


@lru_cache
def _decimal_ratio(number: float | Fraction) -> tuple[int, int]:
    # By its decimal text: Fraction(0.9) would be the binary number nearest to 0.9.
    return Fraction(str(number)).as_integer_ratio()
