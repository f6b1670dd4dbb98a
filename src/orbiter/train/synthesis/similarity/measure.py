"""What "similar" means: Jaccard similarity over sets of word n-grams, in whole numbers.

The definition in plain Python, which every faster path must agree with. Left out: how to find
similar texts among many, which `plain` and `compiled` do.
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
"""n neighbouring words; a text of fewer than n words is one shingle, all of it."""

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
    """Why a text is a near-duplicate."""

    witness: int
    """Number of the text it is close to: the closest one, and the earliest of those."""
    shared: int
    """Shingles that both have."""
    union: int
    """Shingles that at least one has."""

    @property
    def similarity(self) -> float:
        """Return the Jaccard similarity, in [0, 1]."""
        return self.shared / self.union


def normalise(text: str) -> str:
    """Return `text` as it is compared: words, in white space, of one case and compatibility form.

    In a script that puts no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
    Tibetan) each character, with the marks that belong to it, is a word.
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    if _FROM_THAI_ON.search(folded) is None:  # Latin, Greek, Cyrillic, Hebrew, Arabic: all spaced
        return folded
    return _UNSPACED.sub(r" \g<0> ", folded)


@dataclass(frozen=True, slots=True)
class Measure:
    """A threshold and an n-gram length: when two texts count as the same.

    The threshold is the decimal as written, not the binary number nearest to it, and every
    comparison is made in whole numbers: 9 shared shingles of 10 reach 0.9.
    """

    threshold: float | Fraction = 0.9
    """Jaccard similarity from which on two texts are duplicates, in (0, 1]."""
    ngram: int = 3
    """Words to a shingle."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold must lie in (0, 1], got {self.threshold}")
        if self.ngram < 1:
            raise ConfigError(f"ngram must be at least 1 word, got {self.ngram}")

    @property
    def ratio(self) -> tuple[int, int]:
        """Return the threshold as numerator and denominator of what its decimal writing says."""
        return _as_written(self.threshold)

    def shingles(self, text: str) -> frozenset[Shingle]:
        """Return the set of shingles that stands for `text`."""
        words = self.words(text)
        if len(words) < self.ngram:
            return frozenset([tuple(words)])
        return frozenset(zip(*(words[i:] for i in range(self.ngram)), strict=False))

    def words(self, text: str) -> list[str]:
        """Return the words of `text` as they are compared."""
        return normalise(text).split()

    def least_partner(self, size: int) -> int:
        """Return how many shingles a partner of a set of `size` needs at the very least."""
        numerator, denominator = self.ratio
        return -(-numerator * size // denominator)

    def least_shared(self, total: int) -> int:
        """Return how many shingles two sets of `total` together must share.

        |A & B| / |A | B| >= p/q is the same as (p + q) |A & B| >= p (|A| + |B|).
        """
        numerator, denominator = self.ratio
        return -(-numerator * total // (numerator + denominator))


@lru_cache
def _as_written(number: float | Fraction) -> tuple[int, int]:
    return Fraction(str(number)).as_integer_ratio()
