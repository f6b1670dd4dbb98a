"""Find candidates that repeat a seed or an accepted item, by the rules of `comparison.py`.

Instructions that a whole run shares, such as a long system prompt, are not compared: they would
make all items similar. Items under different instructions are never similar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orbiter.train.synthesis.comparison import SAME_INSTRUCTIONS, text_alone
from orbiter.train.synthesis.similarity import NearDuplicateIndex
from orbiter.train.trajectory import TrajectoryItem


class Repeats(NamedTuple):
    """The item that a candidate repeats."""

    similarity: float
    seed: int | None
    """The number of the seed; None if it repeats an accepted item."""


class Repetitions:
    """An index of a run's seeds and accepted items, to compare candidates with."""

    def __init__(self, threshold: float, seeds: Sequence[TrajectoryItem]) -> None:
        """Index the seeds; `threshold` is the similarity from which a text repeats another."""
        self._threshold = threshold
        self._indexes: dict[int, NearDuplicateIndex] = {}
        self._seeds: dict[int, list[int]] = {}
        """The numbers of the seeds in each index, in its order."""
        self._instructions = NearDuplicateIndex(SAME_INSTRUCTIONS)
        self._contexts: dict[str, int] = {"": 0}
        self._context_of: list[int] = []
        """The context of each text in `_instructions`."""
        for number, seed in enumerate(seeds):
            context, text = self._place(seed)
            self._index(context).extend([text])
            self._seeds.setdefault(context, []).append(number)

    def admit(self, candidates: Sequence[TrajectoryItem]) -> list[Repeats | None]:
        """Return what each candidate repeats; add those that repeat nothing to the index."""
        repeated: list[Repeats | None] = [None] * len(candidates)
        places = [self._place(candidate) for candidate in candidates]
        for context in dict.fromkeys(context for context, _ in places):
            mine = [number for number, index in enumerate(places) if index[0] == context]
            seeds = self._seeds.get(context, [])
            matches = self._index(context).admit([places[number][1] for number in mine])
            for number, match in zip(mine, matches, strict=True):
                if match is not None:
                    # Seeds were indexed first, so their numbers come before those of candidates.
                    seed = seeds[match.witness] if match.witness < len(seeds) else None
                    repeated[number] = Repeats(match.similarity, seed)
        return repeated

    def _place(self, item: TrajectoryItem) -> tuple[int, str]:
        """Return the number of an item's instructions, and its text without them."""
        instructions, text = text_alone(item)
        if instructions not in self._contexts:
            # Prompts that differ in a date or a name are one context.
            (match,) = self._instructions.admit([instructions])
            new = len(self._context_of) + 1
            self._context_of.append(new if match is None else self._context_of[match.witness])
            self._contexts[instructions] = self._context_of[-1]
        return self._contexts[instructions], text

    def _index(self, context: int) -> NearDuplicateIndex:
        if context not in self._indexes:
            self._indexes[context] = NearDuplicateIndex(self._threshold)
        return self._indexes[context]
