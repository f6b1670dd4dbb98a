"""Turns texts into sets of tokens in compiled code: hashes words, filters sets, orders tokens.

The join itself is in `probing`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orbiter.train.synthesis.similarity.kernels import (
    ODD,
    ONES,
    Bytes,
    Int32s,
    Int64s,
    Sets,
    Uint64s,
    compiled,
    inlined,
    signed,
)

_U = np.uint64
_ODD_2 = _U(0xBF58476D1CE4E5B9)
_LOW_7 = _U(0x7F7F7F7F7F7F7F7F)
_TOP = _U(0x8080808080808080)
_HASH = _U((1 << 56) - 1)


@compiled
def shingle(data: Uint64s, start: Int64s, recent: Uint64s, salt: np.uint64, out: Uint64s) -> Int64s:
    """Hash every text's word n-grams into `out`, one after the other; return where each begins.

    Text i is in the bytes from start[i] to start[i + 1] and ends in white space. Words are split
    where `str.split` splits ASCII, and A to Z become lower case, eight bytes at a time.
    `recent` has n places.
    """
    begin = np.empty(start.shape[0], np.int64)
    written = 0
    for text in range(start.shape[0] - 1):
        begin[text] = written
        written = _shingle_one(data, (start[text], start[text + 1]), recent, salt, (out, written))
    begin[-1] = written
    return begin


@inlined
def _shingle_one(
    data: Uint64s,
    span: tuple[int, int],
    recent: Uint64s,
    salt: np.uint64,
    output: tuple[Uint64s, int],
) -> int:
    """Hash one text's n-grams word by word, and return where the next text's hashes go."""
    out, written = output
    ngram = recent.shape[0]
    outgoing = _U(1)
    for _ in range(ngram):
        outgoing *= ODD
    recent[:] = _U(0)
    rolling, words, slot = _U(0), 0, 0
    hashed, at = _next_word(data, span[0], span[1], salt)
    while at > 0:
        # A rolling hash: the oldest word leaves as the newest one enters.
        rolling = rolling * ODD + hashed - recent[slot] * outgoing
        recent[slot] = hashed
        words += 1
        slot = slot + 1 if slot + 1 < ngram else 0
        if words >= ngram:
            out[written] = _scramble(rolling)
            written += 1
        hashed, at = _next_word(data, at, span[1], salt)
    # A text shorter than an n-gram is one token, so that equal short texts still match.
    if words < ngram:
        out[written] = _scramble(rolling + _U(words + 1))
        written += 1
    return written


@inlined
def _next_word(data: Uint64s, at: int, end: int, salt: np.uint64) -> tuple[np.uint64, int]:
    """Hash the next word from `at` on; return the hash and the next position, or 0 at the end."""
    hashed, inside = salt, False
    while at < end:
        block = _eight_bytes(data, at)
        space = _between(block, 9, 13) | _between(block, 28, 32)
        block |= _between(block, 65, 90) >> _U(2)
        if space == 0:
            hashed, at, inside = _step(hashed, block), at + 8, True
            continue
        # The lowest marked byte is the first space; `below` keeps the bytes before it.
        below = ((space & (~space + _U(1))) >> _U(7)) - _U(1)
        count = signed(((below & ONES) * ONES) >> _U(56))
        at += count + 1
        if count > 0 or inside:
            # The length is stored above the bytes, so that the end of a word is part of its hash.
            return _step(hashed, (block & below) | (_U(count + 1) << _U(56))), at
    return hashed, 0


@inlined
def _eight_bytes(data: Uint64s, at: int) -> np.uint64:
    shift = _U((at & 7) * 8)
    low: np.uint64 = data[at >> 3] >> shift
    high: np.uint64 = (data[(at >> 3) + 1] << _U(1)) << (_U(63) - shift)
    return low | high


@inlined
def _between(block: np.uint64, first: int, last: int) -> np.uint64:
    """Mark by its top bit every ASCII byte of `block` in [first, last]."""
    seven = block & _LOW_7
    reached = seven + ONES * _U(128 - first)
    passed = seven + ONES * _U(127 - last)
    return reached & ~passed & ~block & _TOP


@inlined
def _step(hashed: np.uint64, block: np.uint64) -> np.uint64:
    hashed = (hashed ^ block) * ODD
    return hashed ^ (hashed >> _U(32))


@inlined
def _scramble(token: np.uint64) -> np.uint64:
    token = (token ^ (token >> _U(30))) * _ODD_2
    return token ^ (token >> _U(29))


@compiled
def note_repeats(tokens: Uint64s, seen: Bytes, shift: np.uint64) -> None:
    """Count tokens by slot up to two; tokens that share a slot only count too high."""
    for token in tokens:
        slot = token >> shift
        place, bit = slot >> _U(2), (slot & _U(3)) * _U(2)
        if (seen[place] >> bit) & 3 < 2:
            seen[place] += np.uint8(1) << np.uint8(bit)


@compiled
def matchable(
    tokens: Uint64s, begin: Int64s, seen: Bytes, shift: np.uint64, partner: Int64s
) -> NDArray[np.bool_]:
    """Return for every set whether enough of its tokens occur elsewhere for a match."""
    answer = np.empty(begin.shape[0] - 1, np.bool_)
    for number in range(answer.shape[0]):
        size = begin[number + 1] - begin[number]
        spare = size - partner[size]
        for at in range(begin[number], begin[number + 1]):
            slot = tokens[at] >> shift
            spare -= (seen[slot >> _U(2)] >> ((slot & _U(3)) * _U(2))) & 3 < 2
            if spare < 0:
                break
        answer[number] = spare >= 0
    return answer


@compiled
def gather(tokens: Uint64s, start: Int64s, size: Int32s, chosen: Int64s, out: Uint64s) -> None:
    """Copy the chosen sets' tokens to `out`, one after the other."""
    written = 0
    for number in chosen:
        for at in range(start[number], start[number] + size[number]):
            out[written] = tokens[at]
            written += 1


@compiled
def count_hashes(tokens: Uint64s, counts: NDArray[np.uint16], shift: np.uint64) -> None:
    """Count tokens by slot of their hash, up to 65,535."""
    for token in tokens:
        slot = (token & _HASH) >> shift
        counts[slot] += counts[slot] < 65535


@inlined
def _rank(count: int) -> np.uint64:
    """Compress a count into 8 bits, preserving order: exact below 16, then 8 steps an octave."""
    octave = 0
    while count >= 16:
        count >>= 1
        octave += 1
    return _U(count + 8 * octave)


@compiled
def arrange(sets: Sets, counts: NDArray[np.uint16], shift: np.uint64) -> None:
    """Put every set's tokens in the global order, each once; note the sets' sizes and bitmaps."""
    for number in range(sets.size.shape[0]):
        tokens = sets.tokens[sets.start[number] : sets.start[number] + sets.size[number]]
        for at in range(tokens.shape[0]):
            hashed = tokens[at] & _HASH
            hashed += hashed == 0  # 0 marks an empty slot of the index
            tokens[at] = (_rank(counts[hashed >> shift]) << _U(56)) | hashed
        # Insertion sort beats numpy's on few tokens, which most texts have.
        if tokens.shape[0] > 64:
            tokens[:] = np.sort(tokens)
        else:
            _sort_few(tokens)
        kept = 0
        bitmap = _U(0)
        for at in range(tokens.shape[0]):
            if at == 0 or tokens[at] != tokens[kept - 1]:
                tokens[kept] = tokens[at]
                bitmap ^= _U(1) << (tokens[at] & _U(63))
                kept += 1
        sets.size[number], sets.bitmap[number] = kept, bitmap


@inlined
def _sort_few(tokens: Uint64s) -> None:
    for at in range(1, tokens.shape[0]):
        token = tokens[at]
        gap = at
        while gap > 0 and tokens[gap - 1] > token:
            tokens[gap] = tokens[gap - 1]
            gap -= 1
        tokens[gap] = token
