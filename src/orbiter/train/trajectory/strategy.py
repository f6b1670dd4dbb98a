"""Which items a data set keeps, and in what shape: the one place for a user's own rule."""

from __future__ import annotations

from abc import ABC

from orbiter.train.trajectory.item import TrajectoryItem


class TrajectoryStrategy(ABC):
    """Decide on every item before it is kept. Override either method, or both.

    Both meet scored items only: `item.reward` is a finite float. One thread at a time calls them.
    An error raised here comes out of `capture` as a `CallbackError` that names the item; what was
    captured before stays.
    """

    def should_capture(self, item: TrajectoryItem) -> bool:  # noqa: ARG002 - for subclasses
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
