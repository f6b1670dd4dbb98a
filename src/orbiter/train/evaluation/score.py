"""Scores items concurrently with a user's function and returns the scores in input order.

Partial results are not kept: the first failure stops the run and names the item's index, because a
mean over the items that succeeded would favour the easy ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from orbiter.train.callback import call, map_bounded
from orbiter.train.checks import is_finite_number
from orbiter.train.errors import CallbackError, ConfigError, DataError, boundary
from orbiter.train.evaluation.interval import Interval, mean_interval

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scores:
    """One score for each item, in the items' order."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The plain mean."""
        return self.interval().mean

    def interval(self, *, confidence: float = 0.95, seed: int = 0) -> Interval:
        """Return the mean with its interval: see `mean_interval`."""
        return mean_interval(self.values, confidence=confidence, seed=seed)

    def __len__(self) -> int:
        return len(self.values)


async def score(
    items: Iterable[T],
    fn: Callable[[T], float | Awaitable[float]],
    *,
    concurrency: int = 8,
    timeout_seconds: float | None = None,
) -> Scores:
    """Call `fn` on every item, at most `concurrency` at once, and return the scores.

    `fn` may be sync or async; a sync one runs in a worker thread. True counts as 1, False as 0.

    Raises:
        DataError: there are no items.
        CallbackError: `fn` raised, took longer than `timeout_seconds` for one item, or did not
            return a finite number; the message names the item's index. The other calls are
            cancelled.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, got {concurrency}")
    numbered = list(enumerate(items))
    if not numbered:
        raise DataError("items is empty: there is nothing to score")

    async def one(pair: tuple[int, T]) -> float:
        index, item = pair
        with boundary(f"the score of item {index}"):
            value = await call(fn, item, timeout_seconds=timeout_seconds)
        if not is_finite_number(value):
            raise CallbackError(f"the score of item {index} must be a finite number, got {value!r}")
        return float(value)

    return Scores(tuple(await map_bounded(numbered, one, concurrency=concurrency)))
