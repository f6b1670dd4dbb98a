"""Which items a data set keeps, and in what shape: the one place for a user's own rule."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from inspect import isawaitable

from orbiter.train.errors import CallbackError, boundary
from orbiter.train.trajectory.fields import shown
from orbiter.train.trajectory.item import TrajectoryItem


class TrajectoryStrategy(ABC):  # noqa: B024 - both methods have a meaning unless overridden
    """Decide on every item before it is kept. Override either method, or both.

    Both meet scored items only: `item.reward` is a finite float. One thread at a time calls them.
    An error raised here comes out of `capture` as a `CallbackError` that names the item; what was
    captured before stays.
    """

    def should_capture(self, item: TrajectoryItem) -> bool:  # noqa: ARG002 - for overriding
        """Say whether to keep the item; all are kept unless this is overridden."""
        return True

    def process(self, item: TrajectoryItem) -> TrajectoryItem:
        """Return the item to keep; it is kept as it is unless this is overridden.

        What names the step (task, episode, step, agent, `done`, time) is taken over from the
        original where the new item does not set it; so are the chat and the tokens behind a state
        or an action that did not change.
        """
        return item


class DefaultStrategy(TrajectoryStrategy):
    """Keep everything, unchanged."""


def decide(strategy: TrajectoryStrategy, item: TrajectoryItem) -> TrajectoryItem | None:
    """Return what the strategy makes of a scored item; None where it wants none of it.

    Raises:
        CallbackError: the strategy raised or answered with something else; names the item.
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
