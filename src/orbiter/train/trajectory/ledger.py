"""Keeps memory and journal consistent: an item is written to disk before it is stored."""

from __future__ import annotations

import os
from collections.abc import Sequence

from orbiter.train.errors import StorageError
from orbiter.train.storage import Durability
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.journal import StoreJournal
from orbiter.train.trajectory.store import Place, Store


class Ledger:
    """A store with an optional journal. Not thread-safe: the data set holds the lock."""

    def __init__(self, path: str | os.PathLike[str] | None, durability: Durability) -> None:
        self.store = Store()
        self.journal = StoreJournal(path, self.store, durability) if path is not None else None

    def take_in(self, item: TrajectoryItem) -> None:
        """Add an item: kept if it has a reward, otherwise waiting."""
        if self.journal is None:
            if item.episode_id is None and item.reward is not None:
                self.store.add_alone(item)
            else:
                self.store.add(self.store.place(item), item)
            return
        place = self.store.place(item)
        try:
            self.journal.write_entry(place, item)
            self.store.add(place, item)
        except StorageError:
            raise  # The journal refused the whole record, so file and memory still agree.
        except BaseException:
            # Interrupted between disk and memory, for instance by Ctrl-C: which of the two has the
            # item is unknown, so nothing more may be written.
            self.journal.doubt()
            raise

    def settle(self, outcomes: Sequence[tuple[int, TrajectoryItem | None]]) -> None:
        """Replace waiting entries with the items kept for them, or remove them for None."""
        kept = {
            number: (self.store.place_after(item, number), item)
            for number, item in outcomes
            if item is not None
        }
        if self.journal is None:
            self._settle(outcomes, kept)
            return
        written = [(number, kept.get(number)) for number, _ in outcomes]
        try:
            self.journal.write_scored(written)
            self._settle(outcomes, kept)
        except StorageError:
            # As above.
            raise
        except BaseException:
            self.journal.doubt()
            raise

    def _settle(
        self,
        outcomes: Sequence[tuple[int, TrajectoryItem | None]],
        kept: dict[int, tuple[Place, TrajectoryItem]],
    ) -> None:
        for place, item in kept.values():
            self.store.add(place, item)
        self.store.stop_waiting(number for number, _ in outcomes)
