"""Makes training rows in TRL's form from items: for imitation or for preferences.

To write them to a file, use `registry.write` with "trl-prompt-completion" or "trl-preference".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from orbiter.train.errors import ConfigError
from orbiter.train.formats.preference import preference_pairs
from orbiter.train.formats.trl import completion_row
from orbiter.train.formats.trl_preference import pair_row
from orbiter.train.trajectory import TrajectoryItem

Turns = Literal["all", "last"]
"""Which answers of an episode to imitate: all, or the last with everything before as its prompt."""


def to_sft(
    items: Iterable[TrajectoryItem], *, min_reward: float | None = None, turns: Turns = "all"
) -> list[dict[str, Any]]:
    """Return one row of prompt and completion for each answer to imitate.

    Args:
        items: A data set, or any items. Items with neither an action nor tool calls make no row.
        min_reward: The smallest reward of an answer; answers without a reward are then left out.
            None takes all answers.
        turns: "all" answers of an episode, or only its "last" by `step` (by position if there is
            no step). An item without an episode counts as a last one.

    Raises:
        ConfigError: `turns` is neither.
    """
    if turns not in ("all", "last"):
        raise ConfigError(f"turns must be 'all' or 'last', got {turns!r}")
    chosen = items if turns == "all" else _last_of_episodes(items)
    return [
        completion_row(item)
        for item in chosen
        if (item.action or item.tool_calls)
        and (min_reward is None or (item.reward is not None and item.reward >= min_reward))
    ]


def to_preference_pairs(
    items: Iterable[TrajectoryItem], *, margin: float = 0.0, max_per_state: int | None = 1
) -> list[dict[str, Any]]:
    """Return one row of prompt, chosen and rejected per pair of answers to the same state.

    Args:
        items: A data set, or any items. Two items have the same state if their chats and tools are
            equal. Items without a reward or without a counterpart are in no row.
        margin: The smallest difference of the rewards; even at 0 they must differ.
        max_per_state: The most pairs per state, the largest gap first; None for all, up to n^2 / 2
            for n answers.

    Raises:
        ConfigError: the margin is negative, or `max_per_state` is below 1.
    """
    pairs = preference_pairs(items, margin=margin, max_per_state=max_per_state)
    return [pair_row(pair) for pair in pairs]


def _last_of_episodes(items: Iterable[TrajectoryItem]) -> Iterator[TrajectoryItem]:
    last: dict[object, TrajectoryItem] = {}
    for index, item in enumerate(items):
        key = index if item.episode_id is None else item.episode_id
        before = last.get(key)
        # Ties and unknown steps go to the later one: files are written in order.
        if before is None or before.step is None or item.step is None or item.step >= before.step:
            last[key] = item
    yield from last.values()
