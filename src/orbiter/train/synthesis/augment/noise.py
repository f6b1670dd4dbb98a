"""Typing noise whose strength is an expected character error rate.

The character error rate of a noisy text is its Levenshtein distance to the original over the
number of characters that noise may touch (`protect.free_spans`). Not supported: noise of
speech recognition or scanning, which makes other kinds of errors.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, get_args

from orbiter.train.errors import ConfigError
from orbiter.train.synthesis.augment.protect import Span

NoiseOp = Literal["insert", "delete", "substitute", "swap"]
"""A typing error; "swap" exchanges two neighbours."""

ALL_OPS: tuple[NoiseOp, ...] = get_args(NoiseOp)


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of one strength, ready to be applied to many texts."""

    ops: tuple[NoiseOp, ...]
    rate: float
    """Edits per character, in [0, 1]."""
    gaps: Sequence[int]
    """Untouched characters up to the next edit, geometric with `rate`, one for each 12-bit draw."""

    @classmethod
    def of(cls, level: float, ops: Sequence[NoiseOp] = ALL_OPS) -> Noise:
        """Choose the edit rate for which the expected character error rate is `level`.

        Adjacent edits partly cancel (an insertion next to a deletion looks like one substitution),
        so the edit rate is slightly higher. Up to a level of 0.6 the result is within a few per
        cent; edits at every position reach about 0.7.

        Raises:
            ConfigError: `level` is not in [0, 1], or `ops` is empty or has an unknown entry.
        """
        if isinstance(level, bool) or not 0 <= level <= 1:
            raise ConfigError(f"noise_level must lie in [0, 1], got {level!r}")
        unknown = [op for op in ops if op not in ALL_OPS]
        if unknown or not ops:
            raise ConfigError(f"ops must be some of {ALL_OPS}, got {tuple(ops)}")
        rate = _rate(level, tuple(ops))
        return cls(tuple(ops), rate, _geometric(rate))

    def apply(self, text: str, free: Sequence[Span], key: str) -> str:
        """Return `text` with errors inside the spans of `free`; equal keys give equal errors.

        The draws come from SHAKE-128 of the key and the text, so they depend on nothing else, not
        on the process or on the rest of the batch.
        """
        size = sum(end - start for start, end in free)
        edits = size * self.rate
        if not edits:
            return text
        units: Sequence[str] = text
        if not text.isascii() and len(pieces := clusters(text)) < len(text):
            units, free = pieces, _in_units(pieces, free)
        # Six standard deviations above the mean, so that a second round is hardly ever needed.
        wanted = int(edits + 6 * math.sqrt(edits)) + 16
        while (noisy := self._edit(units, free, _draws(key + text, wanted))) is None:
            wanted *= 2
        return noisy

    def _edit(self, text: Sequence[str], free: Sequence[Span], draws: Sequence[int]) -> str | None:
        """Return the noisy text, or None if there are too few `draws` to reach its end.

        `text` holds characters, or the clusters of a text in which some characters belong together.
        """
        out: list[str] = []
        gaps, ops, spans = self.gaps, self.ops, iter(free)
        at, end = next(spans, (0, 0))
        done = 0
        for draw in draws:
            # Twelve bits choose the gap, and the other twenty the error.
            at += gaps[draw & 0xFFF]
            while at >= end:
                span = next(spans, None)
                if span is None:
                    out.extend(text[done:])
                    return "".join(out)
                # What is left of the gap continues in the next span: protected text does not count.
                at += span[0] - end
                end = span[1]
            out.extend(text[done:at])
            piece, done = _slip(text, at, end, ops, draw >> 12)
            out.append(piece)
            at = done
        return None


def _slip(
    text: Sequence[str], at: int, end: int, ops: Sequence[NoiseOp], draw: int
) -> tuple[str, int]:
    """Return the replacement of the character at `at` (a swap: of two), and the next position."""
    char, op = text[at], ops[draw % len(ops)]
    if op == "delete":
        return "", at + 1
    # Two equal neighbours would swap without an effect; then another letter is typed.
    if op == "swap" and at + 1 < end and text[at + 1] != char:
        return text[at + 1] + char, at + 2
    letter = _letter(text, at, draw // len(ops))
    if letter == char:  # a text without letters: there is no other letter to insert
        return ("", at + 1) if op == "substitute" else (char, at + 1)
    return char + letter if op == "insert" else letter, at + 1


def _letter(text: Sequence[str], at: int, draw: int) -> str:
    """Return a letter of the script around `at`, drawn from the text: its own frequencies."""
    char = text[at]
    if isinstance(text, str) and text.isascii():
        # From the text itself: its letters have the frequencies of its language.
        letter = text[draw % len(text)]
        return letter if letter != char and letter.isalpha() else _latin(char, draw)
    script = _script_near(text, at)
    for probe in range(8):
        # A prime step, so that a few probes see different places of the text.
        letter = text[(draw + probe * 7919) % len(text)]
        if letter != char and _script(letter) == script:
            return letter
    if script == "LATIN":
        return _latin(char, draw)
    # Slow but rare: the text has hardly any letter of this script.
    others = [other for other in text if other != char and _script(other) == script]
    return others[draw % len(others)] if others else char


def _latin(char: str, draw: int) -> str:
    return _LETTERS[draw % 26] if _LETTERS[draw % 26] != char else _LETTERS[draw % 26 - 1]


def _script_near(text: Sequence[str], at: int) -> str:
    """Return the script of the letter at `at`, or of the nearest one before or after it."""
    for distance in range(len(text)):
        for index in (at - distance, at + distance):
            if 0 <= index < len(text) and (script := _script(text[index])):
                return script
    return ""


@lru_cache(maxsize=4096)
def _script(cluster: str) -> str:
    """Return the script of a letter, such as "LATIN" or "CJK"; "" if it is not a letter."""
    char = cluster[:1]
    if not char.isalpha():
        return ""
    # The first word of a letter's Unicode name is its script.
    return unicodedata.name(char, "?").split(" ")[0]


def clusters(text: str) -> list[str]:
    """Return the characters as a reader sees them: marks with their letter, emoji sequences whole.

    A short form of the extended grapheme clusters of Unicode Standard Annex 29.
    """
    result: list[str] = []
    for char in text:
        if result and _belongs(result[-1], char):
            result[-1] += char
        else:
            result.append(char)
    return result


def _belongs(before: str, char: str) -> bool:
    """Return whether `char` continues the cluster `before`."""
    # No ASCII character is a mark, and "\r\n" is the one pair that belongs together.
    if char.isascii():
        return before == "\r" and char == "\n"
    last = before[-1]
    if last == _JOINER:  # it joins something other than a letter, so an emoji sequence continues
        return not char.isalpha()
    if _FLAG_LETTER.match(char):  # two regional indicators form a flag
        return len(before) == 1 and _FLAG_LETTER.match(before) is not None
    if _KOREAN_REST.match(char):
        return _KOREAN_START.match(last) is not None
    return unicodedata.category(char) in _MARKS or _MODIFIER.match(char) is not None


def _in_units(pieces: Sequence[str], free: Sequence[Span]) -> list[Span]:
    """Convert spans of characters to spans of clusters, without clusters that a span's end cuts."""
    ends = list(accumulate(map(len, pieces)))
    spans: list[Span] = []
    for start, end in free:
        first = bisect_left(ends, start + 1)
        # The span begins inside a cluster, part of which is protected.
        if first < len(ends) and ends[first] - len(pieces[first]) < start:
            first += 1
        last = bisect_right(ends, end)
        if first < last:
            spans.append((first, last))
    return spans


_JOINER = "\u200d"
_MODIFIER = re.compile("[\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")  # skin tones, tags
_FLAG_LETTER = re.compile("[\U0001f1e6-\U0001f1ff]")
_KOREAN_REST = re.compile("[\u1160-\u11ff]")  # vowels and last consonants of a syllable
_KOREAN_START = re.compile("[\u1100-\u11ff\uac00-\ud7a3]")
_MARKS = frozenset({"Mn", "Mc", "Me"})
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
"""How much of the distance two kinds of edits lose when they are adjacent, measured on English
text: with edits worth x per character, the distance is x - c x^2, c the mean of these over pairs of
edits."""


def _rate(level: float, ops: tuple[NoiseOp, ...]) -> float:
    """Solve level = x - c x^2 for the edits' worth x per character; return edits per character."""
    pairs = [_OVERLAP.get(frozenset({one, other}), 0.0) for one in ops for other in ops]
    c = sum(pairs) / len(pairs)
    # The same root as (1 - sqrt(...)) / 2c, in a form that also works for c = 0.
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
    # The inverse of the geometric distribution, at the middle of each of 4,096 equal parts.
    return [int(math.log((draw + 0.5) / 4096) / log_miss) for draw in range(4096)]


def _draws(key: str, count: int) -> Sequence[int]:
    digest = hashlib.shake_128(key.encode("utf-8", "surrogatepass")).digest(4 * count)
    return struct.unpack(f"<{count}I", digest)
