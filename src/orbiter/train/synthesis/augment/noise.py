"""Typing noise whose strength means something: an expected character error rate.

The character error rate of a noisy text is its Levenshtein distance to the original over the
number of characters that noise may touch (`augment_protect.free_spans`). Left out: the noise of
speech or of scanning, whose errors follow other laws.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from orbiter.train.errors import ConfigError
from orbiter.train.synthesis.augment.protect import Span

NoiseOp = Literal["insert", "delete", "substitute", "swap"]
"""A slip of the finger; "swap" exchanges two neighbours."""

ALL_OPS: tuple[NoiseOp, ...] = get_args(NoiseOp)


@dataclass(frozen=True, slots=True)
class Noise:
    """A strength of noise, ready to be put on many texts."""

    ops: tuple[NoiseOp, ...]
    rate: float
    """Edits per character, in [0, 1]."""
    gaps: Sequence[int]
    """Untouched characters up to the next edit, geometric with `rate`, one for each 12-bit draw."""

    @classmethod
    def of(cls, level: float, ops: Sequence[NoiseOp] = ALL_OPS) -> Noise:
        """Plan so many edits that the expected character error rate is `level`.

        The distance counts less than was done where edits meet (an insertion beside a deletion
        reads as one substitution), so a little more is done. Up to a level of 0.6 the rate comes
        out within a few per cent; what all edits at every place reach is about 0.7.

        Raises:
            ConfigError: `level` is not in [0, 1], or `ops` are none or unknown.
        """
        if isinstance(level, bool) or not 0 <= level <= 1:
            raise ConfigError(f"noise_level must lie in [0, 1], got {level!r}")
        unknown = [op for op in ops if op not in ALL_OPS]
        if unknown or not ops:
            raise ConfigError(f"ops must be some of {ALL_OPS}, got {tuple(ops)}")
        rate = _rate(level, tuple(ops))
        return cls(tuple(ops), rate, _geometric(rate))

    def apply(self, text: str, free: Sequence[Span], key: str) -> str:
        """Return `text` with slips inside the spans of `free`, the same whenever `key` is the same.

        The draws come from SHAKE-128 of the key and the text, so they depend on nothing else:
        neither on the process nor on what else is in the batch.
        """
        size = sum(end - start for start, end in free)
        edits = size * self.rate
        if not edits:
            return text
        wanted = int(edits + 6 * math.sqrt(edits)) + 16
        while (noisy := self._edit(text, free, _draws(key + text, wanted))) is None:
            wanted *= 2
        return noisy

    def _edit(self, text: str, free: Sequence[Span], draws: Sequence[int]) -> str | None:
        """Return the noisy text, or None where `draws` are too few to reach its end."""
        out: list[str] = []
        gaps, ops, spans = self.gaps, self.ops, iter(free)
        at, end = next(spans)
        done = 0
        for draw in draws:
            at += gaps[draw & 0xFFF]
            while at >= end:
                span = next(spans, None)
                if span is None:
                    out.append(text[done:])
                    return "".join(out)
                at += span[0] - end
                end = span[1]
            out.append(text[done:at])
            piece, done = _slip(text, at, end, ops, draw >> 12)
            out.append(piece)
            at = done
        return None


def _slip(text: str, at: int, end: int, ops: Sequence[NoiseOp], draw: int) -> tuple[str, int]:
    """Return what stands for the character at `at` (for a swap: the two), and where to go on."""
    char, op = text[at], ops[draw % len(ops)]
    if op == "delete":
        return "", at + 1
    if op == "swap" and at + 1 < end and text[at + 1] != char:
        return text[at + 1] + char, at + 2
    # Letters come from the text itself: its own script, in its own frequencies.
    letter = text[draw // len(ops) % len(text)]
    if letter == char or not letter.isalpha():
        letter = _LETTERS[draw % 26] if _LETTERS[draw % 26] != char else _LETTERS[draw % 26 - 1]
    return char + letter if op == "insert" else letter, at + 1


_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_OVERLAP: dict[frozenset[str], float] = {
    frozenset({"insert", "delete"}): 0.56,
    frozenset({"insert", "substitute"}): 0.04,
    frozenset({"insert", "swap"}): 0.42,
    frozenset({"delete", "substitute"}): 0.10,
    frozenset({"delete", "swap"}): 0.60,
    frozenset({"substitute", "swap"}): 0.23,
    frozenset({"swap"}): 0.26,
}
"""How much of the distance two kinds of edits lose by meeting, measured on English text: with
edits worth x per character, the distance is x - c x^2, c the mean of these over pairs of edits."""


def _rate(level: float, ops: tuple[NoiseOp, ...]) -> float:
    """Solve level = x - c x^2 for the edits' worth x per character; return edits per character."""
    pairs = [_OVERLAP.get(frozenset({one, other}), 0.0) for one in ops for other in ops]
    c = sum(pairs) / len(pairs)
    # The same root as (1 - sqrt(...)) / 2c, in the form that holds for c = 0.
    worth = 2 * level / (1 + math.sqrt(max(0.0, 1 - 4 * c * level)))
    if worth == 0:
        return 0.0
    swaps = ops.count("swap") / len(ops)
    # A swap costs two and uses up two characters; every other edit costs one and uses one.
    step = (1 + swaps) / worth - swaps
    return 1 / max(1.0, step)


@lru_cache(maxsize=8)
def _geometric(rate: float) -> Sequence[int]:
    if rate in {0.0, 1.0}:
        return [0] * 4096
    log_miss = math.log1p(-rate)
    return [int(math.log((draw + 0.5) / 4096) / log_miss) for draw in range(4096)]


def _draws(key: str, count: int) -> Sequence[int]:
    digest = hashlib.shake_128(key.encode("utf-8", "surrogatepass")).digest(4 * count)
    return struct.unpack(f"<{count}I", digest)
