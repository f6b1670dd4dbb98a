"""The engine of a large `NearDuplicateIndex`: the compiled join over texts that come in batches.

If all texts are known from the start, `compiled` does it in one pass with less work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from orbiter.train.synthesis.similarity import hashing, probing
from orbiter.train.synthesis.similarity.compiled import (
    arrange,
    hash_texts,
    learn,
    limits,
    matches,
    postings,
)
from orbiter.train.synthesis.similarity.kernels import Int64s, Sets
from orbiter.train.synthesis.similarity.measure import Match, Measure
from orbiter.train.synthesis.similarity.probing import NEVER, Join

S = TypeVar("S", bound=np.generic)


class CompiledEngine:
    """The engine of a large `NearDuplicateIndex`.

    Later texts are unknown, so no token is skipped, and the order of the tokens is recomputed
    whenever the index has doubled. Any order gives the same results; a good one is faster.
    """

    def __init__(self, measure: Measure, salt: int = 0) -> None:
        """Make an empty engine."""
        self._measure, self._salt = measure, salt
        self._tokens = Column(np.uint64)
        self._start, self._size = Column(np.int64), Column(np.int32)
        self._bitmap, self._number = Column(np.uint64), Column(np.int64)
        self._seen = Column(np.int32)
        self._kept = Column(np.int64)
        self._order = learn(np.empty(0, np.uint64))
        self._limits = limits(measure, 0)
        self._postings = postings(0)
        self._learnt = 0

    def extend(self, texts: Mapping[int, str]) -> None:
        """Add all texts under their numbers."""
        rows = self._append(texts)
        probing.enter(self._join, rows)
        self._kept.extend(rows)

    def admit(self, texts: Mapping[int, str]) -> dict[int, Match]:
        """Add the texts that are similar to none; return a match for each of the others."""
        rows = self._append(texts)
        result = probing.admit(self._join, rows)
        self._kept.extend(rows[result[:, 0] < 0])
        return matches(result, self._number.values[rows], self._number.values)

    @property
    def _sets(self) -> Sets:
        return Sets(self._tokens.values, self._start.values, self._size.values, self._bitmap.values)

    @property
    def _join(self) -> Join:
        return Join(self._sets, self._limits, self._postings, self._seen.values, NEVER)

    def _append(self, texts: Mapping[int, str]) -> Int64s:
        """Store the texts' sets, make room for their prefixes, and return their rows."""
        first = len(self._size)
        for tokens, begin in hash_texts(list(texts.values()), self._measure, self._salt):
            self._start.extend(begin[:-1] + len(self._tokens))
            self._size.extend(np.diff(begin))
            self._tokens.extend(tokens)
        self._number.extend(np.fromiter(texts, np.int64, count=len(texts)))
        self._bitmap.extend(np.zeros(len(texts), np.uint64))
        self._seen.extend(np.full(len(texts), -1, np.int32))
        largest = int(self._size.values[first:].max(initial=0))
        if largest >= len(self._limits.partner):
            self._limits = limits(self._measure, 2 * largest)
        if len(self._kept) + len(texts) > 2 * self._learnt:
            return self._learn_anew(len(texts))
        arrange(self._tail(first), self._order)
        self._make_room(first)
        return np.arange(first, len(self._size))

    def _learn_anew(self, fresh: int) -> Int64s:
        """Drop the refused texts, and bring all others into a recomputed order."""
        last = len(self._size)
        stay = np.concatenate([self._kept.values, np.arange(last - fresh, last)])
        size = self._size.values[stay]
        tokens = np.empty(int(size.sum()), np.uint64)
        hashing.gather(self._tokens.values, self._start.values, self._size.values, stay, tokens)
        self._tokens.replace(tokens)
        self._start.replace(np.cumsum(size, dtype=np.int64) - size)
        self._size.replace(size)
        self._bitmap.replace(self._bitmap.values[stay])
        self._number.replace(self._number.values[stay])
        self._seen.replace(np.full(len(stay), -1, np.int32))
        self._kept.replace(np.arange(len(stay) - fresh))
        self._order, self._learnt = learn(tokens), len(stay)
        arrange(self._sets, self._order)
        self._index_anew()
        return np.arange(len(stay) - fresh, len(stay))

    def _make_room(self, first: int) -> None:
        needed = probing.prefix_total(self._join, first)
        if self._postings.used[0] + needed > len(self._postings.next):
            self._index_anew()

    def _index_anew(self) -> None:
        entries = probing.prefix_total(self._join, 0)
        self._postings = postings(2 * entries)
        probing.enter(self._join, self._kept.values)

    def _tail(self, first: int) -> Sets:
        sets = self._sets
        return Sets(sets.tokens, sets.start[first:], sets.size[first:], sets.bitmap[first:])


class Column(Generic[S]):
    """A flat array that grows at its end without being copied every time."""

    def __init__(self, dtype: type[S]) -> None:
        """Make an empty column."""
        self._room: NDArray[S] = np.empty(64, dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> NDArray[S]:
        """Return the content of the column, without a copy."""
        return self._room[: self._length]

    def extend(self, values: NDArray[Any]) -> None:
        """Put `values` at the end."""
        length = self._length + len(values)
        if length > len(self._room):
            room = np.empty(2 * length, self._room.dtype)
            room[: self._length] = self.values
            self._room = room
        self._room[self._length : length] = values
        self._length = length

    def replace(self, values: NDArray[Any]) -> None:
        """Replace the content by `values`."""
        self._room, self._length = values.astype(self._room.dtype), len(values)
