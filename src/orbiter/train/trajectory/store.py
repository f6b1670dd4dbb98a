"""The in-memory part of a data set: kept items, waiting items, and the latest turn per episode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

from orbiter.train.trajectory.item import NAMES, TrajectoryItem, Values, values_of
from orbiter.train.trajectory.turns import Shortened, Stored, packed, restore, shorten

RECENT = 16
"""The number of episodes whose latest turn is held in full."""


class Place(NamedTuple):
    """An item ready to be stored."""

    stored: Stored
    base: int
    """Number of the entry with which it shares prefixes; -1 if it shares none."""


class Store:
    """Entries, numbered from 0 in the order they arrive; the journal uses the same numbers."""

    def __init__(self) -> None:
        self.kept: list[Stored] = []
        self.waiting: dict[int, Stored] = {}
        self.entries = 0
        self._waiting_of: dict[str | None, list[int]] = {}
        self._last: dict[tuple[str, str | None], tuple[int, Stored]] = {}
        self._recent: dict[tuple[str, str | None], Values] = {}
        """The latest turns in full: rebuilding one takes as long as storing the next."""

    def place(self, item: TrajectoryItem) -> Place:
        """Shorten an item against the latest turn of its episode; changes nothing."""
        if item.episode_id is not None and _is_long(item):
            key = (item.episode_id, item.agent)
            number, previous = self._last.get(key, (-1, None))
            if previous is not None:
                # Compared with the latest turn only: conversations grow at their end.
                return _placed(shorten(item, previous, self._recent.get(key)), number)
        return Place(packed(item), -1)

    def place_after(self, item: TrajectoryItem, number: int) -> Place:
        """Shorten an item against the waiting entry that it came from; changes nothing."""
        return _placed(shorten(item, self.waiting[number]), number)

    def add(self, place: Place, item: TrajectoryItem) -> None:
        """Add `item`, stored in the form of `place`: kept if it has a reward, otherwise waiting."""
        number = self.entries
        self.entries += 1
        if item.reward is None:
            # The number stays valid for as long as the entry waits, so the journal can refer to
            # it.
            self.waiting[number] = place.stored
            self._waiting_of.setdefault(item.episode_id, []).append(number)
        else:
            self.kept.append(place.stored)
        if item.episode_id is not None:
            key = (item.episode_id, item.agent)
            self._last[key] = (number, place.stored)
            # Removed first, so that it moves to the end: the dict is a cache by recency.
            self._recent.pop(key, None)
            self._recent[key] = values_of(item)
            if len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]

    def forget_recent(self) -> None:
        """Drop the full copies of the latest turns; they are rebuilt when needed."""
        self._recent.clear()

    def add_alone(self, item: TrajectoryItem) -> None:
        """Add an item with a reward but no episode: the fast path, since it shares no prefix."""
        self.entries += 1
        self.kept.append(packed(item))

    def waiting_in(self, episode_id: str) -> list[int]:
        """Return the numbers of an episode's waiting entries."""
        return self._waiting_of.get(episode_id, [])

    def waiting_step(self, episode_id: str, step: int) -> int | None:
        """Return the number of a step's waiting entry; of several, the latest."""
        # From the end, so that a step that was repeated is found in its latest form.
        for number in reversed(self.waiting_in(episode_id)):
            stored = self.waiting[number]
            if (stored.tail if isinstance(stored, Shortened) else stored)[_STEP] == step:
                return number
        return None

    def waiting_episodes(self) -> Iterable[str]:
        """Return the episodes that wait for a reward."""
        return [episode for episode in self._waiting_of if episode is not None]

    def stop_waiting(self, numbers: Iterable[int]) -> None:
        """Remove entries from the waiting ones."""
        for number in numbers:
            # The waiting entry stays reachable through later turns that share its prefix.
            episode_id = restore(self.waiting.pop(number)).episode_id
            left = self._waiting_of[episode_id]
            left.remove(number)
            if not left:
                del self._waiting_of[episode_id]
                for key in [key for key in self._recent if key[0] == episode_id]:
                    # the episode has ended, or nearly
                    del self._recent[key]


class ItemsView(Sequence[TrajectoryItem]):
    """A live, read-only view of a data set's items: it copies nothing and grows with the data."""

    def __init__(self, stored: Sequence[Stored]) -> None:
        self._stored = stored

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[TrajectoryItem]:
        return map(restore, self._stored)

    @overload
    def __getitem__(self, index: int) -> TrajectoryItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrajectoryItem]: ...
    def __getitem__(self, index: int | slice) -> TrajectoryItem | list[TrajectoryItem]:
        if isinstance(index, slice):
            return [restore(stored) for stored in self._stored[index]]
        return restore(self._stored[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=False))

    __hash__ = None  # type: ignore[assignment]  # a view that grows has no hash

    def __repr__(self) -> str:
        return f"<{len(self)} items>"


def steps_to_the_end(items: Sequence[TrajectoryItem]) -> list[int]:
    """Return the number of steps between each item and the last one."""
    steps = [item.step for item in items if item.step is not None]
    # Steps count only if every item has one; otherwise the order of arrival does.
    if len(steps) == len(items):
        return [max(steps) - step for step in steps]
    return list(range(len(items) - 1, -1, -1))


_STEP = NAMES.index("step")


def _is_long(item: TrajectoryItem) -> bool:
    """Return whether an item is long enough that looking for prefixes pays off."""
    return (
        item.tools is not None
        or len(item.state) >= 512
        or len(item.messages or ()) >= 8
        or len(item.prompt_token_ids or ()) >= 256
    )


def _placed(stored: Stored, number: int) -> Place:
    return Place(stored, number if isinstance(stored, Shortened) else -1)
