"""The data set: collects items while agents run, stores them and returns them.

Not here: the file formats (`files.py`, `csv_files.py`), the journal on disk (`journal.py`) and the
layout in memory (`store.py`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Self, overload

from orbiter.train.errors import ConfigError, DataError, did_you_mean
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Extra, OnError, Skipped
from orbiter.train.storage import Durability
from orbiter.train.trajectory import csv_files, files, summary
from orbiter.train.trajectory.item import TrajectoryItem
from orbiter.train.trajectory.journal import Recovery
from orbiter.train.trajectory.ledger import Ledger
from orbiter.train.trajectory.store import ItemsView, steps_to_the_end
from orbiter.train.trajectory.strategy import DefaultStrategy, TrajectoryStrategy, decide
from orbiter.train.trajectory.turns import restore

Path = str | os.PathLike[str]

log = logging.getLogger(__name__)


class TrajectoryDataset(Sequence[TrajectoryItem]):
    """Items in the order they were captured; safe to fill from many threads and tasks at once.

    An item without a reward waits until `assign_reward` gives its episode one. Until then the
    strategy does not see it and `len` does not count it.
    """

    def __init__(
        self,
        strategy: TrajectoryStrategy | None = None,
        path: Path | None = None,
        durability: Durability = "process",
    ) -> None:
        """Make a data set in memory, or open or create one on disk if `path` is given.

        Args:
            strategy: decides which items to keep and may change them; the default keeps all.
            path: the journal file; it and its folder need not exist. Only one process can write
                to it at a time.
            durability: which failures an item survives once `capture` has returned: "process", a
                crash of this process; "group", also a power loss, except for the latest 64
                records; "disk", also a power loss.

        Raises:
            ConfigError: `strategy` is not a strategy (perhaps its class), or `durability` is
                unknown.
            StorageError: the journal is in use by another process, is damaged, or is another kind
                of file.
        """
        if strategy is not None and not isinstance(strategy, TrajectoryStrategy):
            raise ConfigError(
                f"strategy must be a TrajectoryStrategy, got {strategy!r}"
                + (": did you forget the ()?" if isinstance(strategy, type) else "")
            )
        if durability not in {"process", "group", "disk"}:
            raise ConfigError(
                f"durability must be 'process', 'group' or 'disk', got {durability!r}"
            )
        self.strategy = strategy if strategy is not None else DefaultStrategy()
        self.skipped: list[Skipped] = []
        """The bad items that an import with on_error="skip" left out."""
        # Reentrant, since a strategy may read the data set that asks it.
        self._lock = threading.RLock()
        self._ledger = Ledger(path, durability)
        self._store = self._ledger.store

    def capture(self, item: TrajectoryItem) -> TrajectoryItem | None:
        """Add an item; return the kept version of it, or None if it was dropped or has to wait.

        Raises:
            CallbackError: the strategy raised or returned an invalid value; the message names the
                item, which is not kept.
            StorageError: the journal could not be written; the item is not kept.
        """
        if type(item) is not TrajectoryItem and not isinstance(item, TrajectoryItem):
            raise DataError(f"capture takes a TrajectoryItem, got {fields.shown(item)}")
        with self._lock:
            # The strategy decides by rewards, so an item without one waits undecided.
            kept = item if item.reward is None else decide(self.strategy, item)
            if kept is None:
                return None
            self._ledger.take_in(kept)
            return kept if kept.reward is not None else None

    def extend(self, items: Iterable[TrajectoryItem]) -> list[TrajectoryItem]:
        """Capture several items in order; return those that were kept."""
        return [kept for item in items if (kept := self.capture(item)) is not None]

    def assign_reward(
        self, episode_id: str, reward: float, gamma: float = 1.0
    ) -> list[TrajectoryItem]:
        """Assign an episode's final reward to its waiting steps; return the items then kept.

            reward of a step = reward * gamma ** (number of steps between it and the last step)

        Steps are counted by `step` if every waiting item has one (agents that share a step number
        share a reward), otherwise by the order of capture. Steps that already have a reward keep
        it. The whole episode changes at once, in one record of the journal.

        Raises:
            DataError: no step of that episode is waiting, or the reward is not finite.
            ConfigError: gamma is outside [0, 1].
            CallbackError: the strategy raised; the whole episode keeps waiting.
        """
        if not 0 <= gamma <= 1:
            raise ConfigError(f"gamma must lie in [0, 1], got {gamma!r}")
        final = fields.number("reward", reward)
        with self._lock:
            numbers = self._store.waiting_in(episode_id)
            if not numbers:
                raise DataError(
                    f"no step of episode {episode_id!r} waits for a reward"
                    + did_you_mean(str(episode_id), self._store.waiting_episodes())
                )
            waiting = [restore(self._store.waiting[number]) for number in numbers]
            # All are decided before anything changes, since the strategy may raise.
            outcomes = [
                (number, decide(self.strategy, replace(item, reward=final * gamma**distance)))
                for number, item, distance in zip(
                    numbers, waiting, steps_to_the_end(waiting), strict=True
                )
            ]
            self._ledger.settle(outcomes)
            return [kept for _, kept in outcomes if kept is not None]

    def revise(
        self, episode_id: str, step: int, change: Callable[[TrajectoryItem], TrajectoryItem]
    ) -> TrajectoryItem | None:
        """Replace a waiting step with the item that `change` returns for it."""
        with self._lock:
            number = self._store.waiting_step(episode_id, step)
            if number is None:
                raise DataError(f"no step {step} of episode {episode_id!r} waits for a reward")
            item = change(restore(self._store.waiting[number]))
            kept = item if item.reward is None else decide(self.strategy, item)
            self._ledger.settle([(number, kept)])
            return kept

    @property
    def items(self) -> ItemsView:
        """The kept items, as a live, read-only view."""
        return ItemsView(self._store.kept)

    @property
    def waiting(self) -> list[TrajectoryItem]:
        """The items that wait for a reward, in the order they were captured."""
        with self._lock:
            return [restore(stored) for stored in self._store.waiting.values()]

    def episodes(self) -> dict[str, list[TrajectoryItem]]:
        """Return the kept items of each episode, sorted by `step` if all have one.

        Otherwise they stay in the order they were captured. Episodes are in the order of their
        first item; items without an episode are left out.
        """
        episodes: dict[str, list[TrajectoryItem]] = {}
        for item in self:
            # A dict keeps the order of insertion, which is that of the first items.
            if item.episode_id is not None:
                episodes.setdefault(item.episode_id, []).append(item)
        for steps in episodes.values():
            if all(item.step is not None for item in steps):
                steps.sort(key=lambda item: item.step or 0)
        return episodes

    def summary(self) -> summary.Summary:
        """Return counts, and mean rewards with 95 % intervals: overall, per agent and per task."""
        return summary.summarise(self, waiting=len(self._store.waiting))

    def export_json(self, path: Path) -> int:
        """Write the kept items as one JSON array of objects; return their number.

        All exports are atomic: they write the whole file or nothing. Waiting items are left out.
        """
        return files.export_json(self._to_export(path), path)

    def export_jsonl(self, path: Path) -> int:
        """Write the kept items as JSON lines, one object per line; return their number."""
        return files.export_jsonl(self._to_export(path), path)

    def export_csv(self, path: Path) -> int:
        """Write the kept items as CSV, with nested fields as JSON text; return their number.

        A text that a spreadsheet would run as a formula gets a leading `'`, which `from_csv`
        removes again.
        """
        return csv_files.export_csv(self._to_export(path), path)

    @classmethod
    def from_json(
        cls,
        path: Path,
        *,
        strategy: TrajectoryStrategy | None = None,
        on_error: OnError = "raise",
        extra: Extra = "error",
    ) -> Self:
        """Read a JSON array of items.

        Args:
            path: the file.
            strategy: decides on every item that is read, as it does on captured items.
            on_error: "raise" stops at the first bad item; "skip" leaves it out, logs it and adds
                it to `skipped`.
            extra: "error" refuses an unknown field; "metadata" moves it into the metadata.

        Raises:
            DataError: an item is wrong; the message names the file, the line (from 1), the field
                and what was expected.
            StorageError: the file cannot be read.
        """
        dataset = cls(strategy)
        dataset.extend(files.read_json(path, on_error, extra, dataset.skipped))
        return dataset

    @classmethod
    def from_jsonl(
        cls,
        path: Path,
        *,
        strategy: TrajectoryStrategy | None = None,
        on_error: OnError = "raise",
        extra: Extra = "error",
    ) -> Self:
        """Read items from JSON lines; arguments and errors are those of `from_json`."""
        dataset = cls(strategy)
        dataset.extend(files.read_jsonl(path, on_error, extra, dataset.skipped))
        return dataset

    @classmethod
    def from_csv(
        cls,
        path: Path,
        *,
        strategy: TrajectoryStrategy | None = None,
        on_error: OnError = "raise",
        extra: Extra = "error",
    ) -> Self:
        """Read CSV whose first row names the fields; for arguments and errors see `from_json`."""
        dataset = cls(strategy)
        dataset.extend(csv_files.read_csv(path, on_error, extra, dataset.skipped))
        return dataset

    @property
    def recovery(self) -> Recovery | None:
        """The result of opening the journal; None for a data set in memory."""
        journal = self._ledger.journal
        return journal.recovery if journal is not None else None

    def close(self) -> None:
        """Close the journal so that another process can write to it; the items stay readable."""
        with self._lock:
            if self._ledger.journal is not None:
                self._ledger.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._store.kept)

    def __iter__(self) -> Iterator[TrajectoryItem]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> TrajectoryItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrajectoryItem]: ...
    def __getitem__(self, index: int | slice) -> TrajectoryItem | list[TrajectoryItem]:
        return self.items[index]

    def __repr__(self) -> str:
        return f"<TrajectoryDataset: {', '.join(self._facts())}>"

    def _repr_html_(self) -> str:
        return summary.as_html(self.items, self._facts())

    def _facts(self) -> list[str]:
        facts = [f"{len(self)} items"]
        if self._store.waiting:
            facts.append(f"{len(self._store.waiting)} waiting for a reward")
        if self._ledger.journal is not None:
            facts.append(f"journal {self._ledger.journal.path}")
        if type(self.strategy) is not DefaultStrategy:
            facts.append(f"strategy {type(self.strategy).__name__}")
        return facts

    def _to_export(self, path: Path) -> ItemsView:
        # A file with items that have no reward would be refused by most readers, and the user must
        # know.
        if self._store.waiting:
            log.warning(
                "%s: %d items that wait for a reward are not exported",
                path,
                len(self._store.waiting),
            )
        return self.items
