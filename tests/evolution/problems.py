"""Small problems with a known answer, used by the tests of evolution."""

from __future__ import annotations

import random

from typing_extensions import override

from orbiter.train.evolution import EvolutionStrategy

Bits = tuple[int, ...]


class OneMax(EvolutionStrategy[Bits]):
    """The more ones the better; counts what it is asked."""

    def __init__(self) -> None:
        self.evaluated: list[Bits] = []
        self.mutated = 0

    @override
    async def evaluate(self, candidate: Bits) -> float:
        self.evaluated.append(candidate)
        return sum(candidate) / len(candidate)

    @override
    async def mutate(self, candidate: Bits) -> Bits:
        self.mutated += 1
        place = self.context.rng.randrange(len(candidate))
        return tuple(b ^ (i == place) for i, b in enumerate(candidate))


def population(count: int, *, length: int = 24, seed: int = 0) -> list[Bits]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(2) for _ in range(length)) for _ in range(count)]
