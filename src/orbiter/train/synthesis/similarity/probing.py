"""The compiled join of token sets: finds similar sets and the clusters that they form.

The prefix join of Xiao et al. 2011 ("Efficient similarity joins for near-duplicate detection",
https://doi.org/10.1145/2000824.2000825): with the tokens of every set in one global order, rarest
first, two sets that are similar enough share a token among their first few. There are also a
length, a position and a bitmap filter (Sandes et al. 2017,
https://doi.org/10.14778/3025111.3025123). No filter ever loses a pair: the join is exact except for
hash collisions, which the caller rules out by comparing real shingles.

The order of the tokens comes from `hashing`; any order gives the same answers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orbiter.train.synthesis.similarity.kernels import (
    ODD,
    ONES,
    Int32s,
    Int64s,
    Sets,
    Uint64s,
    compiled,
    inlined,
    signed,
)

_U = np.uint64


class ThresholdTables(NamedTuple):
    """A similarity threshold as two tables, so that the loops never divide."""

    partner: Int64s
    """For each set size, the least size of a similar set."""
    shared: Int64s
    """For each total size of two sets, how many tokens they must share."""


class Postings(NamedTuple):
    """An inverted index of prefixes: an open-addressed table of chains.

    A prefix has two parts. Two sets that are similar enough share a token that lies in the short
    part of the longer one or of the shorter one, so tokens in both long parts need no visit.
    """

    key: Uint64s
    short_head: Int32s
    long_head: Int32s
    next: Int32s
    owner: Int32s
    place: Int32s
    used: Int64s
    """One number: the entries in use."""


class Join(NamedTuple):
    """The data that a probe needs."""

    sets: Sets
    limits: ThresholdTables
    postings: Postings
    seen: Int32s
    """For each set, the last one compared with it, so that no pair is compared twice."""
    skip: int
    """Tokens of this rank or lower have no match: `ONCE` where all sets are known, or `NEVER`."""


ONCE = 1
NEVER = -1


class BestMatch(NamedTuple):
    """The best match so far."""

    owner: int
    shared: int
    union: int


@compiled
def prefix_total(join: Join, first: int) -> int:
    """Count the index entries that the sets from `first` on can need."""
    total = 0
    for number in range(first, join.sets.size.shape[0]):
        for index in range(_prefix(join, number)):
            total += _rank(_token(join, number, index)) > join.skip
    return total


@compiled
def enter(join: Join, chosen: Int64s) -> None:
    """Index the chosen sets, even if they are similar to others."""
    for number in chosen:
        _enter(join, number)


@compiled
def look_up(join: Join, chosen: Int64s) -> Int64s:
    """Find each chosen set's closest indexed one; rows of owner (-1: none), shared, union."""
    result = np.empty((chosen.shape[0], 3), np.int64)
    for row in range(chosen.shape[0]):
        best = _closest(join, chosen[row])
        result[row, 0], result[row, 1], result[row, 2] = best.owner, best.shared, best.union
    return result


@compiled
def admit(join: Join, chosen: Int64s) -> Int64s:
    """Like `look_up`, but a set without a match enters the index before the next one is tried."""
    result = np.empty((chosen.shape[0], 3), np.int64)
    for row in range(chosen.shape[0]):
        best = _closest(join, chosen[row])
        result[row, 0], result[row, 1], result[row, 2] = best.owner, best.shared, best.union
        if best.owner < 0:
            _enter(join, chosen[row])
    return result


@compiled
def connect(join: Join, parent: Int64s) -> Int64s:
    """Unite, in `parent`, every two sets that are similar enough; return the ties used.

    A tie is a row of two sets and what they share.
    """
    ties = np.empty((join.sets.size.shape[0], 3), np.int64)
    count = 0
    for number in range(join.sets.size.shape[0]):
        short = _short_prefix(join, number)
        for index in range(_prefix(join, number)):
            token = _token(join, number, index)
            if _rank(token) <= join.skip:
                continue
            slot = _slot(join.postings.key, token)
            visit = (number, index, join.postings.short_head[slot])
            count = _tie(join, visit, parent, ties, count)
            if index < short:
                visit = (number, index, join.postings.long_head[slot])
                count = _tie(join, visit, parent, ties, count)
        _enter(join, number)
    return ties[:count]


@inlined
def _closest(join: Join, number: int) -> BestMatch:
    """Return the indexed set most similar to one set."""
    best = BestMatch(signed(-1), signed(0), signed(1))
    short = _short_prefix(join, number)
    for index in range(_prefix(join, number)):
        token = _token(join, number, index)
        if _rank(token) <= join.skip:
            continue
        slot = _slot(join.postings.key, token)
        best = _walk(join, (number, index, join.postings.short_head[slot]), best)
        if index < short:
            best = _walk(join, (number, index, join.postings.long_head[slot]), best)
    return best


@inlined
def _walk(join: Join, visit: tuple[int, int, int], best: BestMatch) -> BestMatch:
    """Follow one chain and return the best match, closest first and then earliest."""
    number, index, entry = visit
    while entry != -1:
        other = signed(join.postings.owner[entry])
        # `seen` holds the set that was compared last, so it need not be cleared between sets.
        if join.seen[other] != number:
            join.seen[other] = number
            shared = _compare(join, number, other, (index, join.postings.place[entry]))
            union = join.sets.size[number] + join.sets.size[other] - shared
            # shared / union compared by cross multiplication: no division, no rounding.
            gain = shared * best.union - best.shared * union
            if shared > 0 and (gain > 0 or (gain == 0 and other < best.owner)):
                best = BestMatch(other, shared, union)
        entry = join.postings.next[entry]
    return best


@inlined
def _tie(join: Join, visit: tuple[int, int, int], parent: Int64s, ties: Int64s, count: int) -> int:
    """Follow one chain and unite the set with each similar one of another cluster."""
    number, index, entry = visit
    mine = _leader(parent, number)
    while entry != -1:
        other = signed(join.postings.owner[entry])
        # Sets of one cluster need not be compared: the tie would add nothing.
        if join.seen[other] != number and _leader(parent, other) != mine:
            join.seen[other] = number
            shared = _compare(join, number, other, (index, join.postings.place[entry]))
            if shared > 0:
                # Without ranks; halving the paths in `_leader` keeps them short.
                parent[_leader(parent, other)] = mine
                ties[count, 0], ties[count, 1], ties[count, 2] = number, other, shared
                count += 1
        entry = join.postings.next[entry]
    return count


@inlined
def _leader(parent: Int64s, number: int) -> int:
    while parent[number] != number:
        # Path halving: every other node skips one step for the next search.
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


@inlined
def _enter(join: Join, number: int) -> None:
    """Put one set's prefix into the index."""
    postings = join.postings
    short = _short_prefix(join, number)
    for index in range(_prefix(join, number)):
        token = _token(join, number, index)
        if _rank(token) <= join.skip:
            continue
        slot = _slot(postings.key, token)
        entry = postings.used[0]
        postings.used[0] = entry + 1
        postings.key[slot] = token
        postings.owner[entry], postings.place[entry] = number, index
        head = postings.short_head if index < short else postings.long_head
        postings.next[entry] = head[slot]
        head[slot] = entry


@inlined
def _prefix(join: Join, number: int) -> int:
    """Return how many first tokens suffice to find every similar set."""
    size = signed(join.sets.size[number])
    prefix: int = size - join.limits.partner[size] + 1
    return prefix


@inlined
def _short_prefix(join: Join, number: int) -> int:
    """Return how many of them suffice for a set that is not longer than its partner."""
    size = signed(join.sets.size[number])
    prefix: int = size - join.limits.shared[2 * size] + 1
    return prefix


@inlined
def _token(join: Join, number: int, index: int) -> np.uint64:
    token: np.uint64 = join.sets.tokens[join.sets.start[number] + index]
    return token


@inlined
def _rank(token: np.uint64) -> int:
    return signed(token >> _U(56))


@inlined
def _slot(key: Uint64s, token: np.uint64) -> int:
    """Find the token's slot in the table, or the empty one where it would go."""
    mask = _U(key.shape[0] - 1)
    slot = (token * ODD) >> _U(20) & mask
    while key[slot] != 0 and key[slot] != token:
        slot = (slot + _U(1)) & mask
    return signed(slot)


@inlined
def _compare(join: Join, number: int, other: int, places: tuple[int, int]) -> int:
    """Count what two sets share, or return 0 if that is too little; cheapest test first."""
    sets = join.sets
    mine, its = sets.size[number], sets.size[other]
    if its < join.limits.partner[mine] or mine < join.limits.partner[its]:
        return 0
    least = join.limits.shared[mine + its]
    # Tokens before the first common one cannot be shared, as both sets ascend.
    if min(mine - places[0], its - places[1]) < least:
        return 0
    # Tokens set bits of the bitmap by exclusive or, so each bit that differs is a token on one side
    # only: the overlap is at most (|A| + |B| - differing) / 2.
    if (mine + its - _differing(sets.bitmap[number], sets.bitmap[other])) // 2 < least:
        return 0
    return _shared(sets, number, other, places, least)


@inlined
def _differing(left: np.uint64, right: np.uint64) -> int:
    bits = left ^ right
    # Counts the set bits in parallel, within ever wider fields.
    bits -= (bits >> _U(1)) & _U(0x5555555555555555)
    bits = (bits & _U(0x3333333333333333)) + ((bits >> _U(2)) & _U(0x3333333333333333))
    bits = (bits + (bits >> _U(4))) & _U(0x0F0F0F0F0F0F0F0F)
    return signed((bits * ONES) >> _U(56))


@inlined
def _shared(sets: Sets, number: int, other: int, places: tuple[int, int], least: int) -> int:
    """Count the tokens two sets share, given their first common one; 0 if fewer than `least`."""
    left, right = sets.start[number] + places[0] + 1, sets.start[other] + places[1] + 1
    left_end, right_end = (
        sets.start[number] + sets.size[number],
        sets.start[other] + sets.size[other],
    )
    shared = 1
    while left < left_end and right < right_end:
        # Even if all remaining tokens matched, they would be too few.
        if shared + min(left_end - left, right_end - right) < least:
            return 0
        # A merge of two ascending lists without branches.
        mine, its = sets.tokens[left], sets.tokens[right]
        shared += mine == its
        left += mine <= its
        right += its <= mine
    return shared if shared >= least else 0
