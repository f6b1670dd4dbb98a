"""The user's rule for which items a data set keeps and how it changes them."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from inspect import isawaitable

from orbiter.train.errors import CallbackError, boundary
from orbiter.train.json_files.fields import shown
from orbiter.train.trajectory.item import TrajectoryItem


class TrajectoryStrategy(ABC):  # noqa: B024 - both methods have a meaning unless overridden
    """Decide on every item before it is kept. Override either method, or both.

    Both methods only get items with a reward: `item.reward` is a finite float. They are called by
    one thread at a time. An error raised in them leaves `capture` as a `CallbackError` that names
    the item; items captured earlier are kept.
    """

    def should_capture(self, item: TrajectoryItem) -> bool:  # noqa: ARG002 - for overriding
        """Return whether to keep the item; the default keeps all."""
        return True

    def process(self, item: TrajectoryItem) -> TrajectoryItem:
        """Return the item to keep; the default keeps it unchanged.

        Fields that identify the step (task, episode, step, agent, `done`, time) are copied from
        the original if the new item does not set them. So are the chat and the tokens if the state
        or the action that they belong to did not change.
        """
        return item


class DefaultStrategy(TrajectoryStrategy):
    """Keep everything, unchanged."""


def decide(strategy: TrajectoryStrategy, item: TrajectoryItem) -> TrajectoryItem | None:
    """Apply the strategy to an item with a reward; return the item to keep, or None to drop it.

    Raises:
        CallbackError: the strategy raised or returned something else; the message names the item.
    """
    if type(strategy) is DefaultStrategy:
        return item
    name = type(strategy).__name__
    with boundary(f"{name}.should_capture, given {_named(item)},"):
        wanted: object = strategy.should_capture(item)
    if wanted is None or isawaitable(wanted):
        raise CallbackError(
            f"{name}.should_capture, given {_named(item)}, must return True or False, "
            f"got {shown(wanted)}"
        )
    if not wanted:
        return None
    with boundary(f"{name}.process, given {_named(item)},"):
        kept = strategy.process(item)
    if kept is item:
        return item
    if not isinstance(kept, TrajectoryItem) or kept.reward is None:
        raise CallbackError(
            f"{name}.process, given {_named(item)}, must return a TrajectoryItem with a reward, "
            f"got {shown(kept)}"
        )
    return _refilled(kept, item)


def _named(item: TrajectoryItem) -> str:
    names = {
        "task_id": item.task_id,
        "episode_id": item.episode_id,
        "step": item.step,
        "state": shown(item.state),
        "action": shown(item.action),
    }
    known = ", ".join(f"{name}={value}" for name, value in names.items() if value is not None)
    return f"the item with {known}"


def _refilled(kept: TrajectoryItem, original: TrajectoryItem) -> TrajectoryItem:
    names = ["task_id", "episode_id", "step", "agent", "done", "timestamp"]
    if kept.state == original.state:
        names += ["messages", "tools", "prompt_token_ids"]
    if kept.action == original.action:
        names.append("tool_calls")
        if kept.token_ids is None:
            names += ["token_ids", "logprobs"]
    missing = {
        name: getattr(original, name)
        for name in names
        if getattr(kept, name) is None and getattr(original, name) is not None
    }
    return replace(kept, **missing) if missing else kept
