"""The base class for synthesisers, `DataSynthesiser`, and the context that a pipeline gives it.

Not here: how many items are requested and what is done with them (`pipeline/`).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbiter.train.errors import TrainError
from orbiter.train.fingerprint import settings_text
from orbiter.train.seeding import sub_random
from orbiter.train.trajectory import TrajectoryItem


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisContext:
    """The data that a pipeline gives a synthesiser with each call.

    It does not depend on the number of concurrent batches: a synthesiser that uses only this
    context and its `rng` makes the same items at any concurrency, and after a resume.
    """

    seeds: Sequence[TrajectoryItem] = ()
    """The seed items that are good enough to learn from."""
    accepted: Sequence[TrajectoryItem] = ()
    """The items accepted in earlier rounds, in order."""
    items: Sequence[TrajectoryItem] = ()
    """The items that the previous step made in this batch; empty for the first step."""
    round: int = 0
    """The number of the round, from 0."""
    offset: int = 0
    """The number of items requested from the first step before this batch, so that a finite source
    can continue from there."""
    seed: int = 0
    """A seed that is unique to this step and batch."""
    spend: Callable[[float], None] = lambda _: None
    """Report the cost of an answer; the total is compared with `SynthesisConfig.max_cost`."""
    report_failure: Callable[[TrainError], None] | None = None
    """Report that one item could not be made, and return a `Rejection` for it; the other items of
    the call are kept. None outside of a pipeline: raise the error."""

    @property
    def rng(self) -> random.Random:
        """A new generator from `seed`; every access restarts it, so keep it in a variable."""
        return sub_random(self.seed, "synthesiser")


class DataSynthesiser(ABC):
    """Something that makes items: from a template, from seeds, from a language model."""

    @abstractmethod
    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> Sequence[TrajectoryItem]:
        """Return `count` new items, or fewer if there are no more; no items end the pipeline.

        A later step finds the items of the previous step in `context.items`. The result may also be
        an async iterator.

        Args:
            count: The number of items requested.
            context: The pipeline's data; None if the method is called directly.
        """

    @property
    def fingerprint(self) -> str:
        """A text that a resumed run compares, to refuse a different synthesiser.

        The default is the class with its attributes, except those that its methods change.
        Override it if other attributes should not count, such as a log file.
        """
        return settings_text(self, code=False)
