"""What "similar" means: Jaccard similarity over sets of word n-grams, in whole numbers.

The definition in plain Python, which every faster path must agree with. Left out: how to find
similar texts among many, which `plain` and `compiled` do.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from orbiter.train.errors import ConfigError

Shingle: TypeAlias = tuple[str, ...]
"""n neighbouring words; a text of fewer than n words is one shingle, all of it."""


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
    """Return `text` as it is compared: compatibility forms and case folded away."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


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
        words = normalise(text).split()
        if len(words) < self.ngram:
            return frozenset([tuple(words)])
        return frozenset(zip(*(words[i:] for i in range(self.ngram)), strict=False))

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
