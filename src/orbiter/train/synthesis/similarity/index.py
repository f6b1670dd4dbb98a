"""An index that texts are admitted to batch by batch, so that near-duplicates never get in.

Left out: taking a text out again.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from orbiter.train.synthesis.similarity.join import FEW, is_true
from orbiter.train.synthesis.similarity.measure import Match, Measure
from orbiter.train.synthesis.similarity.plain import PlainEngine


class NearDuplicateIndex:
    """Texts of which no two are close, whatever the batches in which they came.

    Admitting all texts at once, or one after the other, gives the same answers as one pass over
    them in their order. Texts are numbered as they are handed in, admitted or not.
    """

    def __init__(self, threshold: float | Fraction = 0.9, *, ngram: int = 3) -> None:
        """Make an empty index; `threshold` and `ngram` as for `deduplicate`."""
        self._measure = Measure(threshold, ngram)
        self._engine: _Engine = PlainEngine(self._measure)
        self._kept: dict[int, str] = {}
        self._handed_in = 0
        self._salt = 0

    def __len__(self) -> int:
        """Return how many texts were taken in."""
        return len(self._kept)

    def extend(self, texts: Sequence[str]) -> None:
        """Take all `texts` in, whatever they are close to: a reference set, or a former run's."""
        numbered = self._number(texts)
        self._engine.extend(numbered)
        self._kept |= numbered

    def admit(self, texts: Sequence[str]) -> list[Match | None]:
        """Add each text that is not similar to an earlier one; for the others return a match.

        The witness is a number: 0 is the first text ever handed in.
        """
        numbered = self._number(texts)
        found = self._engine.admit(numbered)
        while not self._all_true(numbered, found):
            self._salt += 1
            self._compile()
            found = self._engine.admit(numbered)
        self._kept |= {number: numbered[number] for number in numbered.keys() - found.keys()}
        return [found.get(number) for number in numbered]

    def _number(self, texts: Sequence[str]) -> dict[int, str]:
        numbered = dict(enumerate(texts, start=self._handed_in))
        self._handed_in += len(numbered)
        if isinstance(self._engine, PlainEngine) and len(self._kept) + len(numbered) >= FEW:
            self._compile()
        return numbered

    def _compile(self) -> None:
        from orbiter.train.synthesis.similarity.compiled_index import CompiledEngine

        self._engine = CompiledEngine(self._measure, self._salt)
        self._engine.extend(self._kept)

    def _all_true(self, fresh: Mapping[int, str], found: Mapping[int, Match]) -> bool:
        texts = ChainMap(dict(fresh), self._kept)
        return all(
            is_true(self._measure, fresh[number], texts[match.witness], match)
            for number, match in found.items()
        )


class _Engine(Protocol):
    def extend(self, texts: Mapping[int, str], /) -> None: ...

    def admit(self, texts: Mapping[int, str], /) -> dict[int, Match]: ...
