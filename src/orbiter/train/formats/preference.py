"""Which of two answers was better: pairs made from the rewards of answers to the same state.

Left out: how a file writes a pair (`trl_preference.py`, `openai_dpo.py`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from orbiter.train.chat.conversation import answer_of, prompt_of
from orbiter.train.errors import ConfigError
from orbiter.train.trajectory import TrajectoryItem, fields


class Pair(NamedTuple):
    """Two answers to the same state."""

    chosen: TrajectoryItem
    """The one of higher reward."""
    rejected: TrajectoryItem

    @property
    def margin(self) -> float:
        """How much more the chosen one was worth."""
        return (self.chosen.reward or 0.0) - (self.rejected.reward or 0.0)


def preference_pairs(
    items: Iterable[TrajectoryItem], *, margin: float = 0.0, max_per_state: int | None = 1
) -> Iterator[Pair]:
    """Yield the pairs of answers to the same state whose rewards differ, the widest apart first.

    Args:
        items: Two have the same state where their chats and tools are equal. Those without a
            reward, or without another to stand against, are in no pair.
        margin: The least difference of the rewards; a pair always differs.
        max_per_state: At most so many pairs a state; None for all there are, n^2 / 2 of n.

    Raises:
        ConfigError: the margin is negative, or `max_per_state` is below 1.
    """
    if not margin >= 0:
        raise ConfigError(f"margin must be at least 0, got {margin!r}")
    if max_per_state is not None and max_per_state < 1:
        raise ConfigError(f"max_per_state must be at least 1, or None, got {max_per_state!r}")
    for group in _by_state(items):
        yield from islice(_widest_first(group, margin), max_per_state)


def _by_state(items: Iterable[TrajectoryItem]) -> list[list[TrajectoryItem]]:
    groups: dict[bytes, list[TrajectoryItem]] = {}
    for item in items:
        if item.reward is not None:
            beside = [item.metadata.get(name) for name in _BESIDE]
            key = fields.encode_sorted([prompt_of(item), item.tools or [], beside])
            groups.setdefault(key, []).append(item)
    return list(groups.values())


def _widest_first(group: list[TrajectoryItem], margin: float) -> Iterator[Pair]:
    """Yield pairs by falling difference, without making all n^2 of them.

    With the best first, a pair (i, j) is wider than (i + 1, j) and (i, j - 1): a heap holds the
    border between those given out and the rest. Equal ones go by the place of the items.
    """
    best = sorted(group, key=_reward, reverse=True)
    border = [(_reward(best[-1]) - _reward(best[0]), 0, len(best) - 1)]
    seen = {border[0][1:]}
    while border:
        negative, high, low = heapq.heappop(border)
        if negative == 0 or -negative < margin:
            return
        pair = Pair(best[high], best[low])
        if answer_of(pair.chosen) != answer_of(pair.rejected):
            yield pair
        for place in ((high, low - 1), (high + 1, low)):
            if place not in seen and place[0] < place[1]:
                seen.add(place)
                wide = _reward(best[place[1]]) - _reward(best[place[0]])
                heapq.heappush(border, (wide, *place))


def _reward(item: TrajectoryItem) -> float:
    return item.reward or 0.0


_BESIDE = ("chat_template_kwargs", "parallel_tool_calls")
"""Entries of the metadata that are part of what the model was asked."""
