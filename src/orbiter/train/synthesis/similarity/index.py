"""An index that admits texts batch by batch and rejects near-duplicates.

A text cannot be removed again.
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
    """A set of texts of which no two are similar.

    Admitting texts all at once or one by one gives the same answers as one pass over them in
    order. Texts are numbered in the order in which they are passed in, admitted or not.
    """

    def __init__(self, threshold: float | Fraction = 0.9, *, ngram: int = 3) -> None:
        """Make an empty index; `threshold` and `ngram` as for `deduplicate`."""
        self._measure = Measure(threshold, ngram)
        self._engine: _Engine = PlainEngine(self._measure)
        self._kept: dict[int, str] = {}
        self._received = 0
        self._salt = 0

    def __len__(self) -> int:
        """Return the number of texts in the index."""
        return len(self._kept)

    def extend(self, texts: Sequence[str]) -> None:
        """Add all `texts` even if they are similar to others, such as a reference set."""
        numbered = self._number(texts)
        self._engine.extend(numbered)
        self._kept |= numbered

    def admit(self, texts: Sequence[str]) -> list[Match | None]:
        """Add each text that is not similar to an earlier one; for the others return a match.

        The witness is the number of a text: 0 is the first one ever passed in.
        """
        numbered = self._number(texts)
        match_of = self._engine.admit(numbered)
        # A collision of hashes made a false match: everything is hashed again with another salt.
        while not self._all_true(numbered, match_of):
            self._salt += 1
            self._compile()
            match_of = self._engine.admit(numbered)
        self._kept |= {number: numbered[number] for number in numbered.keys() - match_of.keys()}
        return [match_of.get(number) for number in numbered]

    def _number(self, texts: Sequence[str]) -> dict[int, str]:
        numbered = dict(enumerate(texts, start=self._received))
        self._received += len(numbered)
        if isinstance(self._engine, PlainEngine) and len(self._kept) + len(numbered) >= FEW:
            self._compile()
        return numbered

    def _compile(self) -> None:
        from orbiter.train.synthesis.similarity.compiled_index import CompiledEngine

        self._engine = CompiledEngine(self._measure, self._salt)
        self._engine.extend(self._kept)

    def _all_true(self, fresh: Mapping[int, str], match_of: Mapping[int, Match]) -> bool:
        texts = ChainMap(dict(fresh), self._kept)
        return all(
            is_true(self._measure, fresh[number], texts[match.witness], match)
            for number, match in match_of.items()
        )


class _Engine(Protocol):
    def extend(self, texts: Mapping[int, str], /) -> None: ...

    def admit(self, texts: Mapping[int, str], /) -> dict[int, Match]: ...
