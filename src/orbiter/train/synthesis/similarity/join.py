"""Finds near-duplicates among many texts with the plain or the compiled engine, and checks them.

Which text of a pair is kept depends on the caller's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from orbiter.train.synthesis.similarity import plain
from orbiter.train.synthesis.similarity.measure import Match, Measure

FEW = 4_000
"""Below this number of texts, plain Python finishes before the compiled code would be loaded."""


def near_duplicates(
    texts: Sequence[str], measure: Measure, *, reference: int = 0
) -> dict[int, Match]:
    """Find every text that reaches the threshold with an earlier kept one, and with which one.

    The texts are visited in order. A text that is similar to no kept text is kept; any other is in
    the answer under its number, with the most similar kept text (the earliest of those) as its
    witness. So no two kept texts are similar, and every other text has a kept witness. Similarity
    to a text that was not kept does not matter: it is not transitive. The first `reference` texts
    are kept without a check.

    The cost is proportional to the texts, except for many texts just below the threshold (one long
    template with short values), where it grows with the square of their number.
    """
    if len(texts) < FEW:
        return plain.near_duplicates(texts, measure, reference=reference)
    from orbiter.train.synthesis.similarity import compiled

    # Ends at the first salt without a collision, almost always 0.
    for salt in count():
        match_of = compiled.near_duplicates(texts, measure, reference=reference, salt=salt)
        pairs = ((texts[number], texts[match.witness], match) for number, match in match_of.items())
        if all(is_true(measure, *pair) for pair in pairs):
            break
    return match_of


def ties(texts: Sequence[str], measure: Measure) -> list[tuple[int, int]]:
    """List enough pairs of similar texts to connect all that belong to one cluster."""
    if len(texts) < FEW:
        return plain.ties(texts, measure)
    from orbiter.train.synthesis.similarity import compiled

    for salt in count():
        tied = compiled.ties(texts, measure, salt=salt)
        if all(
            is_true(measure, texts[number], texts[match.witness], match) for number, match in tied
        ):
            break
    return [(number, match.witness) for number, match in tied]


def crossing(texts: Sequence[str], sides: Sequence[int], measure: Measure) -> int:
    """Count the texts that are similar to a text on a side with a lower number."""
    if len(texts) < FEW:
        return len(plain.crossing(texts, sides, measure))
    from orbiter.train.synthesis.similarity import compiled

    for salt in count():
        match_of = compiled.crossing(texts, sides, measure, salt=salt)
        pairs = ((texts[number], texts[match.witness], match) for number, match in match_of.items())
        if all(is_true(measure, *pair) for pair in pairs):
            break
    return len(match_of)


def is_true(measure: Measure, text: str, witness: str, match: Match) -> bool:
    """Return whether a match holds for the real shingles, not only for their hashes.

    A false match means that two shingles have the same hash, which happens about once in a hundred
    million texts; the caller then hashes everything again with another salt.
    """
    if text == witness:
        return match.shared == match.union
    of_text, of_witness = measure.shingles(text), measure.shingles(witness)
    shared = len(of_text & of_witness)
    return (shared, len(of_text) + len(of_witness) - shared) == (match.shared, match.union)
