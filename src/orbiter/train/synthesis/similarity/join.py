"""Near-duplicates among many texts, exactly: the small or the large engine, its answers checked.

Left out: which text of a pair is the better one; the caller's order says that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from orbiter.train.synthesis.similarity import plain
from orbiter.train.synthesis.similarity.measure import Match, Measure

FEW = 4_000
"""Texts below which plain Python is done before the compiled code would be loaded."""


def near_duplicates(
    texts: Sequence[str], measure: Measure, *, reference: int = 0
) -> dict[int, Match]:
    """Find every text that reaches the threshold with an earlier kept one, and with which one.

    The texts are gone through in order. A text with no kept text close to it is kept; any other is
    in the answer, under its number, with the closest kept one (the earliest of those) for witness.
    So no two kept texts are close, and every other has a kept witness. Who is close to a text that
    was not kept is not thereby out: closeness is not passed on. The first `reference` texts are
    kept unseen.

    Cost: proportional to the texts, but for many texts just below the threshold to each other
    (one long skeleton, little in its slots), where it grows with the square of their number.
    """
    if len(texts) < FEW:
        return plain.near_duplicates(texts, measure, reference=reference)
    from orbiter.train.synthesis.similarity import compiled

    for salt in count():
        found = compiled.near_duplicates(texts, measure, reference=reference, salt=salt)
        pairs = ((texts[number], texts[match.witness], match) for number, match in found.items())
        if all(is_true(measure, *pair) for pair in pairs):
            break
    return found


def ties(texts: Sequence[str], measure: Measure) -> list[tuple[int, int]]:
    """List enough pairs of similar texts to connect all that belong to one cluster."""
    if len(texts) < FEW:
        return plain.ties(texts, measure)
    from orbiter.train.synthesis.similarity import compiled

    for salt in count():
        found = compiled.ties(texts, measure, salt=salt)
        if all(is_true(measure, texts[one], texts[match.witness], match) for one, match in found):
            break
    return [(one, match.witness) for one, match in found]


def crossing(texts: Sequence[str], sides: Sequence[int], measure: Measure) -> int:
    """Count the texts that are close to one on a side with a lower number."""
    if len(texts) < FEW:
        return len(plain.crossing(texts, sides, measure))
    from orbiter.train.synthesis.similarity import compiled

    for salt in count():
        found = compiled.crossing(texts, sides, measure, salt=salt)
        pairs = ((texts[number], texts[match.witness], match) for number, match in found.items())
        if all(is_true(measure, *pair) for pair in pairs):
            break
    return len(found)


def is_true(measure: Measure, text: str, witness: str, match: Match) -> bool:
    """Say whether a match holds for the real shingles, not just for their hashes.

    A wrong one means that two shingles had one hash, once in some hundred million texts; the
    caller then hashes everything anew, under another salt.
    """
    if text == witness:
        return match.shared == match.union
    one, other = measure.shingles(text), measure.shingles(witness)
    shared = len(one & other)
    return (shared, len(one) + len(other) - shared) == (match.shared, match.union)
