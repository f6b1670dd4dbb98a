"""Finds near-duplicates among many texts: prepares the data for the compiled loops.

`join` and `index` check every match on the real shingles, for both engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbiter.train.synthesis.similarity import hashing, probing
from orbiter.train.synthesis.similarity.kernels import Int64s, Sets, Uint64s
from orbiter.train.synthesis.similarity.measure import Match, Measure, normalise
from orbiter.train.synthesis.similarity.probing import ONCE, Join, Postings, ThresholdTables

CHUNK_CHARACTERS = 1 << 18
"""Characters laid out as bytes at a time; few enough to stay in the processor's cache."""
PADDING = "\n" * 24
"""Appended to the last text, so that eight bytes can be read wherever a word may begin."""


class Hashed(NamedTuple):
    """A chunk's texts as token lists, one after the other."""

    tokens: Uint64s
    begin: Int64s


class Candidates(NamedTuple):
    """The sets that can have a match at all."""

    sets: Sets
    members: Int64s
    """The text that each set belongs to."""


def hash_texts(texts: Sequence[str], measure: Measure, salt: int) -> Iterator[Hashed]:
    """Yield the texts' hashed shingles, chunk by chunk, in order."""
    length = np.fromiter(map(len, texts), np.int64, count=len(texts))
    chunk_of = np.cumsum(length) // CHUNK_CHARACTERS
    cuts = [0, *(np.flatnonzero(np.diff(chunk_of)) + 1).tolist(), len(texts)]
    recent = np.zeros(measure.ngram, np.uint64)
    for first, last in pairwise(cuts):
        data, start = _lay_out(texts[first:last], length[first:last])
        # A token takes at least two bytes, its white space included; a text has at least one
        # token.
        out = np.empty(int(start[-1]) // 2 + last - first + 1, np.uint64)
        begin = hashing.shingle(data, start, recent, np.uint64(salt), out)
        yield Hashed(out[: begin[-1]].copy(), begin)


def _lay_out(texts: Sequence[str], length: Int64s) -> tuple[Uint64s, Int64s]:
    joined = "\n".join([*texts, PADDING])
    # The fast path: ASCII texts need no normalising here, as the loop lowers their case.
    if joined.isascii():
        data = joined.encode("ascii")
    else:
        encoded = [_encode(text) for text in texts]
        length = np.fromiter(map(len, encoded), np.int64, count=len(encoded))
        data = b"\n".join([*encoded, PADDING.encode("ascii")])
    start = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(length + 1, out=start[1:])
    return np.frombuffer(data, np.uint64, count=len(data) // 8), start


def _encode(text: str) -> bytes:
    if text.isascii():
        return text.encode("ascii")
    # Split here, because Python knows non-ASCII white space, and join with ASCII for the loop.
    return " ".join(normalise(text).split()).encode("utf-8", "surrogatepass")


def limits(measure: Measure, largest: int) -> ThresholdTables:
    """Tabulate the threshold for sets of up to `largest` tokens."""
    # As Python integers, so that the products cannot overflow.
    sizes = np.arange(2 * largest + 1).astype(object)
    numerator, denominator = measure.ratio
    partner = -(-numerator * sizes[: largest + 1] // denominator)
    shared = -(-numerator * sizes // (numerator + denominator))
    return ThresholdTables(partner.astype(np.int64), shared.astype(np.int64))


def candidates(texts: Sequence[str], measure: Measure, salt: int = 0) -> Candidates:
    """Hash all texts and keep the sets that can have a match, in the order of rare tokens first."""
    chunks = list(hash_texts(texts, measure, salt))
    # The tables must cover the largest set.
    largest = max(int(np.diff(chunk.begin).max()) for chunk in chunks)
    chosen = _matchable(chunks, limits(measure, largest))
    size = np.concatenate([np.diff(c.begin)[k] for c, k in zip(chunks, chosen, strict=True)])
    start = np.concatenate([[0], np.cumsum(size)])
    tokens = np.empty(int(start[-1]), np.uint64)
    members, row, base = [], 0, 0
    for chunk, kept in zip(chunks, chosen, strict=True):
        spans = (chunk.begin[:-1], np.diff(chunk.begin).astype(np.int32))
        hashing.gather(chunk.tokens, *spans, kept, tokens[start[row] :])
        members.append(kept + base)
        row, base = row + len(kept), base + len(chunk.begin) - 1
    # Freed before the sets are arranged, which needs the memory.
    del chunks
    sets = _sets(tokens, start[:-1], size)
    arrange(sets, learn(tokens))
    return Candidates(sets, np.concatenate(members))


def _matchable(chunks: Sequence[Hashed], limit: ThresholdTables) -> list[Int64s]:
    bits = _bits(sum(len(chunk.tokens) for chunk in chunks))
    shift = np.uint64(64 - bits)
    # Two bits for each slot, four slots in a byte.
    seen = np.zeros(1 << (bits - 2), np.uint8)
    for chunk in chunks:
        hashing.note_repeats(chunk.tokens, seen, shift)
    return [
        np.flatnonzero(hashing.matchable(c.tokens, c.begin, seen, shift, limit.partner))
        for c in chunks
    ]


def _bits(count: int) -> int:
    return min(28, max(12, count.bit_length()))


def _sets(tokens: Uint64s, start: Int64s, size: Int64s) -> Sets:
    return Sets(tokens, start, size.astype(np.int32), np.empty(len(size), np.uint64))


class Order(NamedTuple):
    """The global order of tokens: how often each slot of the hash was seen."""

    counts: NDArray[np.uint16]
    shift: np.uint64


def learn(tokens: Uint64s) -> Order:
    """Learn the order from tokens: the more often seen, the later."""
    bits = _bits(len(tokens))
    order = Order(np.zeros(1 << bits, np.uint16), np.uint64(56 - bits))
    hashing.count_hashes(tokens, order.counts, order.shift)
    return order


def arrange(sets: Sets, order: Order) -> None:
    """Bring the sets' tokens into the global order."""
    hashing.arrange(sets, order.counts, order.shift)


def join_of(sets: Sets, measure: Measure) -> Join:
    """Set up a join of `sets`, which must be all sets, with an empty index."""
    limit = limits(measure, int(sets.size.max(initial=0)))
    join = Join(sets, limit, postings(0), np.full(len(sets.size), -1, np.int32), ONCE)
    return join._replace(postings=postings(probing.prefix_total(join, 0)))


def postings(entries: int) -> Postings:
    """Make an empty index with room for `entries`."""
    # At least twice as many slots as entries keeps the chains of probes short.
    slots = 1 << max(10, (2 * entries).bit_length())
    return Postings(
        key=np.zeros(slots, np.uint64),
        short_head=np.full(slots, -1, np.int32),
        long_head=np.full(slots, -1, np.int32),
        next=np.empty(entries, np.int32),
        owner=np.empty(entries, np.int32),
        place=np.empty(entries, np.int32),
        used=np.zeros(1, np.int64),
    )


def near_duplicates(
    texts: Sequence[str], measure: Measure, *, reference: int = 0, salt: int = 0
) -> dict[int, Match]:
    """Find every text that is close to an earlier kept one; the first `reference` are all kept."""
    sets, members = candidates(texts, measure, salt)
    join = join_of(sets, measure)
    checked = int(np.searchsorted(members, reference))
    rows = np.arange(len(members))
    probing.enter(join, rows[:checked])
    return matches(probing.admit(join, rows[checked:]), members[checked:], members)


def ties(texts: Sequence[str], measure: Measure, *, salt: int = 0) -> list[tuple[int, Match]]:
    """List enough pairs of similar texts to connect all that belong to one cluster."""
    sets, members = candidates(texts, measure, salt)
    tied = probing.connect(join_of(sets, measure), np.arange(len(members)))
    union = sets.size[tied[:, 0]] + sets.size[tied[:, 1]] - tied[:, 2]
    listed = _listed(members[tied[:, 1]], tied[:, 2], union)
    return list(zip(members[tied[:, 0]].tolist(), listed, strict=True))


def crossing(
    texts: Sequence[str], sides: Sequence[int], measure: Measure, *, salt: int = 0
) -> dict[int, Match]:
    """Find every text that is similar to a text on a side with a lower number."""
    sets, members = candidates(texts, measure, salt)
    join = join_of(sets, measure)
    side_of = np.asarray(sides)[members]
    match_of: dict[int, Match] = {}
    for side in np.unique(side_of):
        rows = np.flatnonzero(side_of == side)
        match_of |= matches(probing.look_up(join, rows), members[rows], members)
        probing.enter(join, rows)
    return match_of


def matches(result: Int64s, numbers: Int64s, owners: Int64s) -> dict[int, Match]:
    """Convert the result of `look_up` or `admit` to matches between text numbers."""
    hits = np.flatnonzero(result[:, 0] >= 0)
    listed = _listed(owners[result[hits, 0]], result[hits, 1], result[hits, 2])
    return dict(zip(numbers[hits].tolist(), listed, strict=True))


def _listed(witness: Int64s, shared: Int64s, union: Int64s) -> Iterator[Match]:
    return map(Match, witness.tolist(), shared.tolist(), union.tolist())
