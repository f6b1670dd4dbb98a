"""Convert the user's data set into tasks with tokenized prompts, and report those that do not fit.

Encoding a chat into tokens is in `prompt.py`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from orbiter.train.engine.config import OnLongPrompt
from orbiter.train.errors import DataError
from orbiter.train.seeding import sub_random
from orbiter.train.trajectory import TrajectoryItem

log = logging.getLogger(__name__)

Dataset = Iterable[TrajectoryItem | str]
"""A TrajectoryDataset, or any list of items or prompts."""


def as_items(dataset: object) -> list[TrajectoryItem]:
    """Return the data set's items in order, with repeats; a prompt becomes the state of an item.

    Raises:
        DataError: the data set is not iterable, is empty, or has an entry that is neither an item
            nor a string.
    """
    # A string is iterable too, and would become one prompt per character.
    if isinstance(dataset, str) or not isinstance(dataset, Iterable):
        raise DataError(
            "a data set must be a TrajectoryDataset, a list of TrajectoryItem or a list of "
            f"prompts, got {type(dataset).__name__}"
        )
    items = [_as_item(entry, index) for index, entry in enumerate(dataset)]
    if not items:
        raise DataError("the data set is empty: there is nothing to learn from")
    return items


def read_once(dataset: object) -> object:
    """Return a data set that can be read repeatedly: an iterator becomes a list."""
    # An iterator can be read once, but validation and training both read the data.
    return list(dataset) if isinstance(dataset, Iterator) else dataset


def first_given(*datasets: object) -> object:
    """Return the first data set that is not None, to evaluate on.

    Raises:
        DataError: all of them are None.
    """
    given = next((dataset for dataset in datasets if dataset is not None), None)
    if given is None:
        raise DataError("there is nothing to evaluate on; give evaluate() a data set")
    return read_once(given)


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
    """Items with their tokenized prompts, in two lists of equal length."""

    items: list[TrajectoryItem]
    prompts: list[list[int]]
    dropped: int = 0
    """Items left out because their prompt did not fit."""
    truncated: int = 0
    """Prompts that were cut on the left."""

    def __len__(self) -> int:
        return len(self.items)

    def select(self, indices: Sequence[int]) -> Tasks:
        """Return the tasks at these indices."""
        return Tasks([self.items[i] for i in indices], [self.prompts[i] for i in indices])

    def order(self, step: int, size: int, *, seed: int) -> list[int]:
        """Return the indices of a step's tasks.

        Each epoch has a different shuffle; its last batch may be smaller.
        """
        epoch, batch = divmod(step, self.steps_per_epoch(size))
        # Recomputed from the seed, so a resumed run needs no stored order.
        return shuffled(len(self), seed, epoch)[batch * size : (batch + 1) * size]

    def steps_per_epoch(self, size: int) -> int:
        """Return the number of batches of `size` that cover every task once."""
        return -(-len(self) // size)


@functools.lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """Return an epoch's order; cached, since every step of the epoch takes a part of it."""
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
    """Encode every prompt, and apply `on_long_prompt` to those with more than `room(item)` tokens.

    Args:
        items: The tasks.
        encode: Returns an item's prompt as token ids, cut on the left to at most the given number
            of tokens; None means not cut.
        room: Returns the largest number of tokens that an item's prompt may have.
        on_long_prompt: How longer prompts are handled.

    Raises:
        DataError: a prompt is too long and `on_long_prompt` is "error", or no prompt is left.
    """
    kept: list[TrajectoryItem] = []
    prompts: list[list[int]] = []
    dropped = truncated = 0
    # The index counts all items, so that the error message points into the user's data.
    for index, item in enumerate(items):
        token_ids, longest = encode(item, None), room(item)
        if len(token_ids) > longest:
            if on_long_prompt == "error":
                raise DataError(_too_long(index, item, len(token_ids), longest))
            # With no room at all, cutting would leave an empty prompt.
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
