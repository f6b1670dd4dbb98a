"""Finds near-duplicates in plain Python: for few texts, before compiled code would be loaded.

The answers are those of `compiled`, witnesses included. It is slow for more than a few thousand
texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import chain

from orbiter.train.synthesis.similarity.measure import Match, Measure, Shingle


class PlainIndex:
    """An index of sets of shingles by their rarest shingles (prefix filter)."""

    def __init__(self, measure: Measure) -> None:
        """Make an empty index."""
        self.measure = measure
        self._sets: dict[int, frozenset[Shingle]] = {}
        self._owners: dict[Shingle, list[int]] = {}
        self._rank: dict[Shingle, int] = {}

    def __len__(self) -> int:
        """Return the number of indexed sets."""
        return len(self._sets)

    def learn(self, sets: Iterable[frozenset[Shingle]]) -> None:
        """Compute which shingles are rare, from the indexed sets and the coming `sets`."""
        often = Counter(chain.from_iterable(chain(self._sets.values(), sets)))
        self._rank = {
            shingle: (count << 40) | number for number, (shingle, count) in enumerate(often.items())
        }
        indexed, self._sets, self._owners = self._sets, {}, {}
        for number, shingles in indexed.items():
            self.enter(number, shingles)

    def enter(self, number: int, shingles: frozenset[Shingle]) -> None:
        """Index a set under `number`, even if it is similar to others."""
        self._sets[number] = shingles
        for shingle in self._prefix(shingles):
            self._owners.setdefault(shingle, []).append(number)

    def closest(self, shingles: frozenset[Shingle]) -> Match | None:
        """Return the closest indexed set that reaches the threshold, the earliest of those."""
        return min(self.close(shingles), key=_closest_first, default=None)

    def close(self, shingles: frozenset[Shingle]) -> Iterator[Match]:
        """Yield every indexed set that reaches the threshold."""
        lists = (self._owners.get(shingle, ()) for shingle in self._prefix(shingles))
        for number in set(chain.from_iterable(lists)):
            other = self._sets[number]
            total = len(shingles) + len(other)
            shared = len(shingles & other)
            # The exact test in whole numbers; no rounding decides.
            if shared >= self.measure.least_shared(total):
                yield Match(number, shared, total - shared)

    def _prefix(self, shingles: frozenset[Shingle]) -> list[Shingle]:
        """Return the rarest shingles; similar sets have at least one of these in common."""
        count = len(shingles) - self.measure.least_partner(len(shingles)) + 1
        return nsmallest(count, shingles, key=self._order)

    def _order(self, shingle: Shingle) -> int:
        # A shingle that was never counted is rarer than all others.
        return self._rank.setdefault(shingle, len(self._rank))


class PlainEngine:
    """The engine of a small `NearDuplicateIndex`."""

    def __init__(self, measure: Measure) -> None:
        """Make an empty engine."""
        self._measure = measure
        self._index = PlainIndex(measure)
        self._learnt = 0

    def extend(self, texts: Mapping[int, str]) -> None:
        """Index all texts under their numbers."""
        for number, shingles in self._prepare(texts).items():
            self._index.enter(number, shingles)

    def admit(self, texts: Mapping[int, str]) -> dict[int, Match]:
        """Index the texts that are similar to none; return a match for each of the others."""
        match_of: dict[int, Match] = {}
        for number, shingles in self._prepare(texts).items():
            match = self._index.closest(shingles)
            if match is None:
                self._index.enter(number, shingles)
            else:
                match_of[number] = match
        return match_of

    def _prepare(self, texts: Mapping[int, str]) -> dict[int, frozenset[Shingle]]:
        sets = {number: self._measure.shingles(text) for number, text in texts.items()}
        # Learned anew whenever the index has doubled, so the cost stays proportional.
        if len(self._index) + len(sets) > 2 * self._learnt:
            self._index.learn(sets.values())
            self._learnt = len(self._index) + len(sets)
        return sets


def near_duplicates(
    texts: Sequence[str], measure: Measure, *, reference: int = 0
) -> dict[int, Match]:
    """Find every text similar to an earlier kept one; the first `reference` are all kept."""
    numbered = dict(enumerate(texts))
    engine = PlainEngine(measure)
    engine.extend({number: numbered.pop(number) for number in range(reference)})
    return engine.admit(numbered)


def ties(texts: Sequence[str], measure: Measure) -> list[tuple[int, int]]:
    """List every pair of similar texts."""
    sets = [measure.shingles(text) for text in texts]
    index = PlainIndex(measure)
    index.learn(sets)
    pairs: list[tuple[int, int]] = []
    for number, shingles in enumerate(sets):
        pairs += ((match.witness, number) for match in index.close(shingles))
        index.enter(number, shingles)
    return pairs


def crossing(texts: Sequence[str], sides: Sequence[int], measure: Measure) -> dict[int, Match]:
    """Find every text that is similar to a text on a side with a lower number."""
    sets = [measure.shingles(text) for text in texts]
    index = PlainIndex(measure)
    index.learn(sets)
    match_of: dict[int, Match] = {}
    for side in sorted(set(sides)):
        here = [number for number, its in enumerate(sides) if its == side]
        close = {number: index.closest(sets[number]) for number in here}
        match_of |= {number: match for number, match in close.items() if match is not None}
        for number in here:
            index.enter(number, sets[number])
    return match_of


def _closest_first(match: Match) -> tuple[float, int]:
    # Two different ratios of sets below 10^7 shingles differ by more than a float's last place.
    return -match.similarity, match.witness
