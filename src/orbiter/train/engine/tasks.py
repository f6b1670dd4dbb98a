"""What users pass as data, as tasks with prompts in tokens; one that does not fit is never silent.

Left out: how a chat becomes tokens (`prompt.py`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orbiter.train.engine.config import OnLongPrompt
from orbiter.train.errors import DataError
from orbiter.train.seeding import sub_random
from orbiter.train.trajectory import TrajectoryItem

log = logging.getLogger(__name__)

Dataset = Iterable[TrajectoryItem | str]
"""A TrajectoryDataset, or any list of items or of prompts."""


def as_items(dataset: object) -> list[TrajectoryItem]:
    """Return the tasks in their order, repeats kept; a plain prompt becomes the state of an item.

    Raises:
        DataError: nothing to iterate over, nothing in it, or an entry that is no item and no text.
    """
    if isinstance(dataset, str) or not isinstance(dataset, Iterable):
        raise DataError(
            "a data set must be a TrajectoryDataset, a list of TrajectoryItem or a list of "
            f"prompts, got {type(dataset).__name__}"
        )
    items = [_as_item(entry, index) for index, entry in enumerate(dataset)]
    if not items:
        raise DataError("the data set is empty: there is nothing to learn from")
    return items


def _as_item(entry: object, index: int) -> TrajectoryItem:
    if isinstance(entry, TrajectoryItem):
        return entry
    if isinstance(entry, str):
        return TrajectoryItem(state=entry, action="")
    raise DataError(
        f"entry {index} of the data set is of type {type(entry).__name__}; it must be a "
        "TrajectoryItem or a prompt as text"
    )


@dataclass(frozen=True, slots=True)
class Tasks:
    """Items with their prompts in tokens, side by side."""

    items: list[TrajectoryItem]
    prompts: list[list[int]]
    dropped: int = 0
    """Items left out because their prompt did not fit."""
    truncated: int = 0
    """Prompts that lost their beginning."""

    def __len__(self) -> int:
        return len(self.items)

    def select(self, indices: Sequence[int]) -> Tasks:
        """Return the tasks at these places."""
        return Tasks([self.items[i] for i in indices], [self.prompts[i] for i in indices])

    def order(self, step: int, size: int, *, seed: int) -> list[int]:
        """Return the places of a step's tasks.

        Each epoch is a shuffle of its own, whose last batch is what is left.
        """
        epoch, place = divmod(step, self.steps_per_epoch(size))
        return _shuffled(len(self), seed, epoch)[place * size : (place + 1) * size]

    def steps_per_epoch(self, size: int) -> int:
        """Return how many batches of `size` hold every task once."""
        return -(-len(self) // size)


@functools.lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """Return an epoch's order; kept, since every step of the epoch asks for its part of it."""
    order = list(range(count))
    sub_random(seed, "order", epoch).shuffle(order)
    return order


def make_tasks(
    items: Sequence[TrajectoryItem],
    encode: Callable[[TrajectoryItem, int | None], list[int]],
    *,
    room: Callable[[TrajectoryItem], int],
    on_long_prompt: OnLongPrompt = "error",
) -> Tasks:
    """Encode every prompt, and treat those with more tokens than `room(item)` as the policy says.

    Args:
        items: The tasks.
        encode: Gives a prompt in token ids: all of them, or cut on the left to so many.
        room: Tells how many tokens an item's prompt may have.
        on_long_prompt: What becomes of the longer ones.

    Raises:
        DataError: a prompt is too long and the policy is "error", or none is left.
    """
    kept: list[TrajectoryItem] = []
    prompts: list[list[int]] = []
    dropped = truncated = 0
    for index, item in enumerate(items):
        token_ids, longest = encode(item, None), room(item)
        if len(token_ids) > longest:
            if on_long_prompt == "error":
                raise DataError(_too_long(index, item, len(token_ids), longest))
            if on_long_prompt == "drop" or longest < 1:
                dropped += 1
                continue
            truncated += 1
            token_ids = encode(item, longest)
        kept.append(item)
        prompts.append(token_ids)
    if dropped or truncated:
        log.warning(
            "%d of %d prompts have more tokens than fit: %d left out, %d cut on the left",
            *(dropped + truncated, len(items), dropped, truncated),
        )
    if not kept:
        raise DataError(f"no prompt fits: all {dropped} were left out as too long")
    return Tasks(kept, prompts, dropped, truncated)


def _too_long(index: int, item: TrajectoryItem, length: int, longest: int) -> str:
    return (
        f"the prompt of item {index} has {length} tokens, and {longest} fit (state "
        f"{item.state[:60]!r}); shorten it, raise max_prompt_length as far as the model's context "
        "allows, or set on_long_prompt='drop' or 'truncate-left'"
    )
