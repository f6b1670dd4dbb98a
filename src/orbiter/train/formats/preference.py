"""Makes preference pairs from answers to the same state with different rewards.

Not here: how files store a pair (`trl_preference.py`, `openai_dpo.py`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from orbiter.train.chat.conversation import answer_of, prompt_of
from orbiter.train.errors import ConfigError
from orbiter.train.json_files import fields
from orbiter.train.trajectory import TrajectoryItem

T = TypeVar("T")
Sides = tuple[TrajectoryItem, TrajectoryItem]
"""A better and a worse answer."""


class Pair(NamedTuple):
    """Two answers to the same state."""

    chosen: TrajectoryItem
    """The answer with the higher reward."""
    rejected: TrajectoryItem

    @property
    def margin(self) -> float:
        """The reward of the chosen answer minus that of the rejected one."""
        return (self.chosen.reward or 0.0) - (self.rejected.reward or 0.0)


def preference_pairs(
    items: Iterable[TrajectoryItem], *, margin: float = 0.0, max_per_state: int | None = 1
) -> Iterator[Pair]:
    """Yield pairs of answers to the same state with different rewards, the largest gap first.

    The pairs that a preference file without scores stated come before others with the same gap.

    Args:
        items: Two items have the same state if their chats and tools are equal. Items without a
            reward or without a counterpart are in no pair.
        margin: The smallest difference of the rewards; even at 0 they must differ.
        max_per_state: The most pairs per state; None for all, up to n^2 / 2 for n answers.

    Raises:
        ConfigError: the margin is negative, or `max_per_state` is below 1.
    """
    if not margin >= 0:
        raise ConfigError(f"margin must be at least 0, got {margin!r}")
    if max_per_state is not None and max_per_state < 1:
        raise ConfigError(f"max_per_state must be at least 1, or None, got {max_per_state!r}")
    for group in _by_state(items):
        pairs = _stated_first(group, margin)
        # Before the limit is applied, so that a pair of equal answers does not use up a place.
        differing = (Pair(*pair) for pair in pairs if answer_of(pair[0]) != answer_of(pair[1]))
        yield from islice(differing, max_per_state)


def _stated_first(group: Sequence[TrajectoryItem], margin: float) -> Iterator[Sides]:
    stated = stated_pairs(group, _reward) if margin <= 1 else None
    yield from stated or ()
    yielded = {(id(better), id(worse)) for better, worse in stated or ()}
    for better, worse in widest_first(group, _reward, margin=margin):
        if (id(better), id(worse)) not in yielded:
            yield better, worse


def stated_or_widest_pairs(items: Iterable[TrajectoryItem]) -> Iterator[Pair]:
    """Yield, for each state, the pairs that a preference file stated, or else the widest pair."""
    for group in _by_state(items):
        stated = stated_pairs(group, _reward)
        pairs = widest_first(group, _reward) if stated is None else stated
        differing = (Pair(*pair) for pair in pairs if answer_of(pair[0]) != answer_of(pair[1]))
        yield from differing if stated is not None else islice(differing, 1)


def stated_pairs(group: Sequence[T], reward: Callable[[T], float]) -> list[tuple[T, T]] | None:
    """Return the pairs that a preference file without scores stated; None for another group.

    Each row of such a file is read as two answers with rewards 1 and 0, one after the other. These
    rewards only compare the two answers of a row: of the rows "2 stars over 1" and "5 over 4", a
    pair of the first row's better answer with the second row's worse one would be the wrong way
    round.

    Args:
        group: The answers to one state, or attempts at one task, in the order of the data.
        reward: Returns the reward of one of them.
    """
    better, worse = group[::2], group[1::2]
    if len(better) != len(worse) or not group:
        return None
    if any(reward(each) != 1 for each in better) or any(reward(each) != 0 for each in worse):
        return None
    return list(zip(better, worse, strict=True))


def state_key(item: TrajectoryItem) -> bytes:
    """Return what two items must share to have the same state: all that their answers depend on."""
    beside = [item.metadata.get(name) for name in PROMPT_SETTINGS]
    return fields.encode_sorted([prompt_of(item), item.tools or [], beside])


def widest_first(
    group: Sequence[T], reward: Callable[[T], float], *, margin: float = 0.0
) -> Iterator[tuple[T, T]]:
    """Yield pairs with different rewards by decreasing gap, without making all n^2 of them.

    With a group sorted by falling reward, pair (i, j) has a gap at least as large as (i + 1, j) and
    (i, j - 1), so a heap of candidates on the border of the pairs already yielded is enough. Ties
    are broken by the positions in the group.

    Args:
        group: The answers to one state, or attempts at one task.
        reward: Returns the reward of one of them.
        margin: The smallest difference of the rewards; even at 0 they must differ.
    """
    best = sorted(group, key=reward, reverse=True)
    border = [(reward(best[-1]) - reward(best[0]), 0, len(best) - 1)]
    seen = {border[0][1:]}
    while border:
        negative, high, low = heapq.heappop(border)
        # The heap yields by decreasing gap, so all that follow are too close as well.
        if negative == 0 or -negative < margin:
            return
        yield best[high], best[low]
        # The two neighbours with the next smaller gap; nothing else can come next.
        for better, worse in ((high, low - 1), (high + 1, low)):
            if (better, worse) not in seen and better < worse:
                seen.add((better, worse))
                negative = reward(best[worse]) - reward(best[better])
                heapq.heappush(border, (negative, better, worse))


def _by_state(items: Iterable[TrajectoryItem]) -> list[list[TrajectoryItem]]:
    groups: dict[bytes, list[TrajectoryItem]] = {}
    for item in items:
        if item.reward is not None:
            groups.setdefault(state_key(item), []).append(item)
    return list(groups.values())


def _reward(item: TrajectoryItem) -> float:
    return item.reward or 0.0


PROMPT_SETTINGS = ("chat_template_kwargs", "parallel_tool_calls")
"""Metadata entries that are part of the model's input, so they must match as well."""
