"""The data set: takes items in while agents run, keeps them, gives them out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import overload

from orbiter.train.errors import CallbackError, boundary
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.strategy import DefaultStrategy, TrajectoryStrategy


class TrajectoryDataset:
    """Items in the order of their capture; safe to fill from many threads and tasks at once."""

    def __init__(self, strategy: TrajectoryStrategy | None = None) -> None:
        self.strategy = strategy if strategy is not None else DefaultStrategy()
        self._items: list[TrajectoryItem] = []
        self._waiting: list[TrajectoryItem] = []
        self._lock = threading.RLock()

    def capture(self, item: TrajectoryItem) -> TrajectoryItem | None:
        """Keep an item, or drop it, as the strategy says; return what was kept, or None."""
        with self._lock:
            if item.reward is None:
                self._waiting.append(item)
                return None
            with boundary(f"{type(self.strategy).__name__} on {item.state[:40]!r}"):
                if not self.strategy.should_capture(item):
                    return None
                kept = self.strategy.process(item)
            if not isinstance(kept, TrajectoryItem):
                raise CallbackError(f"process returned {type(kept).__name__}")
            self._items.append(kept)
            return kept

    def extend(self, items: Iterable[TrajectoryItem]) -> list[TrajectoryItem]:
        """Capture several; return those that were kept."""
        return [kept for item in items if (kept := self.capture(item)) is not None]

    @property
    def items(self) -> tuple[TrajectoryItem, ...]:
        """The kept items."""
        return tuple(self._items)

    def episodes(self) -> dict[str, list[TrajectoryItem]]:
        """Return the items of each episode, in the order of their steps."""
        found: dict[str, list[TrajectoryItem]] = {}
        for item in self._items:
            if item.episode_id is not None:
                found.setdefault(item.episode_id, []).append(item)
        return found

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[TrajectoryItem]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> TrajectoryItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrajectoryItem]: ...
    def __getitem__(self, index: int | slice) -> TrajectoryItem | list[TrajectoryItem]:
        return self._items[index]
