"""What makes new items: `DataSynthesiser`, the one method to write, and what it is told.

Left out: how many are asked for and what becomes of them; that is `pipeline.py`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbiter.train.seeding import sub_random
from orbiter.train.trajectory import TrajectoryItem


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisContext:
    """What a synthesiser may look at while a pipeline asks it.

    Nothing in it depends on how many batches run at once: who draws from `rng` and reads from
    here alone makes the same items at any concurrency, and after a resume.
    """

    seeds: Sequence[TrajectoryItem] = ()
    """The seed items that are good enough to learn from."""
    accepted: Sequence[TrajectoryItem] = ()
    """The items accepted in earlier rounds, in order."""
    items: Sequence[TrajectoryItem] = ()
    """What the step before made in this batch; empty for the first step."""
    round: int = 0
    """Which round this is, from 0."""
    offset: int = 0
    """How many items the first step was asked for before this batch: where a finite source goes
    on."""
    seed: int = 0
    """A number of this step and batch alone."""
    spend: Callable[[float], None] = lambda _: None
    """Tell what an answer has cost; compared with `SynthesisConfig.max_cost`."""

    @property
    def rng(self) -> random.Random:
        """A fresh generator from `seed`; every access starts it anew, so keep it in a variable."""
        return sub_random(self.seed, "synthesiser")


class DataSynthesiser(ABC):
    """Something that makes items: from a template, from seeds, from a language model."""

    @abstractmethod
    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> Sequence[TrajectoryItem]:
        """Return `count` new items, or fewer where there are no more; none ends the pipeline.

        A step behind another one finds what that one made in `context.items`. The answer may also
        come as an async iterator.

        Args:
            count: How many are wanted.
            context: What a pipeline knows; None where it is called by hand.
        """

    @property
    def fingerprint(self) -> str:
        """What a resumed run compares, so that it does not go on with another synthesiser.

        The class's name unless overridden; return more where settings change what is made.
        """
        return type(self).__qualname__
