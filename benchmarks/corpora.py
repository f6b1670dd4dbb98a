"""Texts to measure near-duplicate removal on: English word frequencies, planted duplicates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from wordfreq import get_frequency_dict

VOCABULARY = 150_000
EDIT_RATES = (0.0, 0.02, 0.05, 0.10)
"""Word edits of the planted duplicates, in equal parts; the first part is exact copies."""


class Language:
    """Words drawn as often as English has them."""

    def __init__(self, seed: int) -> None:
        table = get_frequency_dict("en", wordlist="large").items()
        plain = [(word, often) for word, often in table if word.isascii() and " " not in word]
        plain.sort(key=lambda pair: -pair[1])
        self.words = np.array([word for word, _ in plain[:VOCABULARY]], dtype=object)
        often = np.array([often for _, often in plain[:VOCABULARY]])
        self.cumulative = np.cumsum(often / often.sum())
        self.random = np.random.default_rng(seed)

    def draw(self, count: int) -> np.ndarray:
        """Draw words, as their numbers."""
        place = np.searchsorted(self.cumulative, self.random.random(count))
        return np.minimum(place, len(self.words) - 1)

    def text(self, numbers: np.ndarray | list[int]) -> str:
        """Write numbered words out."""
        return " ".join(self.words[np.asarray(numbers, dtype=np.int64)])


def prose(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Return `count` texts of independent words, a fifth of them edited copies of the others."""
    language = Language(seed)
    copies = count // 5
    length = language.random.integers(shortest, longest + 1, count - copies)
    drawn = np.split(language.draw(int(length.sum())), np.cumsum(length)[:-1])
    sources = language.random.integers(0, len(drawn), copies)
    texts = [language.text(numbers) for numbers in drawn]
    for copy, source in enumerate(sources):
        rate = EDIT_RATES[copy % len(EDIT_RATES)]
        texts.append(language.text(edited(language, drawn[source], rate)))
    return [texts[place] for place in language.random.permutation(count)]


def edited(language: Language, numbers: np.ndarray, rate: float) -> list[int]:
    """Replace, delete or insert words: binomially many at `rate`, at least one unless it is 0."""
    words = numbers.tolist()
    edits = max(1, language.random.binomial(len(words), rate)) if rate else 0
    for _ in range(edits):
        action, place = language.random.integers(3), int(language.random.integers(len(words)))
        if action == 0:
            words[place] = int(language.draw(1)[0])
        elif action == 1 and len(words) > 4:
            del words[place]
        else:
            words.insert(place, int(language.draw(1)[0]))
    return words


def templated(count: int, seed: int) -> list[str]:
    """Return `count` agent-like texts: one preamble, 300 templates, slots of few values."""
    language = Language(seed)
    preamble = language.draw(12).tolist()
    templates = [list(_template(language)) for _ in range(300)]
    values = language.random.permutation(20_000)[:400].tolist()
    texts = []
    for _ in range(count):
        numbers = list(preamble)
        for word in templates[int(language.random.integers(len(templates)))]:
            if word is None:
                times = int(language.random.integers(1, 4))
                numbers += [
                    values[int(language.random.integers(len(values)))] for _ in range(times)
                ]
            else:
                numbers.append(word)
        texts.append(language.text(numbers))
    return texts


def _template(language: Language) -> Iterator[int | None]:
    length = int(language.random.integers(20, 45))
    slots = language.random.choice(length, int(language.random.integers(2, 6)), replace=False)
    for place, word in enumerate(language.draw(length).tolist()):
        yield None if place in slots else word
