"""A data set on disk: one line a record, each with its checksum, appended and never rewritten.

    <crc32> {"journal": "orbiter.train.trajectory", "version": 1}      the first line
    <crc32> {"entry": [item, base, cut]}                               captured; kept or waiting
    <crc32> {"scored": [[number, [item, base, cut] or null], ...]}     an episode got its reward

An entry's `item` lacks the first `cut` parts of its shared fields (`turns.SHARED`), which are those
of the entry numbered `base`. A whole episode is scored in one record, so a kill leaves it scored or
not. The journal holds what the strategy made of an item: reopening does not ask the strategy again.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orbiter.train.errors import StorageError
from orbiter.train.storage import AppendLog, Durability, read_records
from orbiter.train.trajectory import fields
from orbiter.train.trajectory.codec import Line, values_in
from orbiter.train.trajectory.item import TrajectoryItem, from_values, values_of
from orbiter.train.trajectory.store import Place, Store
from orbiter.train.trajectory.turns import Stored, Turn, packed, unpacked

log = logging.getLogger(__name__)

_HEADER = b'{"journal":"orbiter.train.trajectory","version":1}'
_HEADER_LINE = b"%08x " % zlib.crc32(_HEADER) + _HEADER + b"\n"


class Entry(msgspec.Struct, array_like=True):
    """One item, shortened."""

    item: Line
    base: int
    cut: tuple[int, ...]


class Outcome(msgspec.Struct, array_like=True):
    """What became of a waiting entry: the item that was kept, or None."""

    number: int
    entry: Entry | None


class Record(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One line: exactly one of the two."""

    entry: Entry | None = None
    scored: list[Outcome] | None = None


class Recovery(NamedTuple):
    """What reopening a journal found."""

    items: int
    waiting: int
    torn_bytes: int
    """Bytes of an unfinished last record, moved aside to `<name>.torn`; never acknowledged."""


class Journal:
    """Writes every change of a `Store` before it happens, and plays them back."""

    def __init__(self, path: str | os.PathLike[str], store: Store, durability: Durability) -> None:
        """Open or create the journal at `path` and fill `store` with what it holds.

        Raises:
            StorageError: it is held by another process, is no journal, or is damaged before its
                end; the message names the path and the line.
        """
        self.path = Path(path)
        _refuse_foreign(self.path)
        self._log = _open(self.path, durability)
        self._owner = os.getpid()
        self._doubtful = False
        try:
            torn = self._log.recovered.torn_bytes + _set_damaged_tail_aside(self.path)
            _replay(self.path, store)
            if not self.path.stat().st_size:
                self._append(_HEADER)
        except BaseException:
            self._log.close()
            raise
        self.recovery = Recovery(len(store.kept), len(store.waiting), torn)
        if torn:
            log.warning(
                "%s: its last %d bytes, an unfinished and never acknowledged record, were moved to "
                "%s.torn",
                path,
                torn,
                path,
            )

    def write_entry(self, place: Place, item: TrajectoryItem) -> None:
        """Record an item before the store takes it in."""
        if isinstance(place.stored, Turn):
            self._append(fields.encode(Record(entry=_entry(place, item))))
        else:  # the same bytes in two thirds of the time
            self._append(b'{"entry":[%b,-1,[]]}' % fields.encode(Line(*values_of(item))))

    def write_scored(
        self, outcomes: Sequence[tuple[int, tuple[Place, TrajectoryItem] | None]]
    ) -> None:
        """Record, at once, what became of an episode's waiting entries."""
        scored = [Outcome(number, kept and _entry(*kept)) for number, kept in outcomes]
        self._append(fields.encode(Record(scored=scored)))

    def doubt(self) -> None:
        """Write nothing more: what was written last may not stand in memory."""
        self._doubtful = True

    def close(self) -> None:
        """Sync where that is promised, and let another process write."""
        self._log.close()

    def _append(self, record: bytes) -> None:
        if self._doubtful:
            raise StorageError(
                f"{self.path}: a write was interrupted; close this data set and open it again"
            )
        if os.getpid() != self._owner:
            raise StorageError(
                f"{self.path} was opened by process {self._owner}, and this is its child "
                f"{os.getpid()}: give every process a journal of its own"
            )
        try:
            self._log.append(b"%08x %b" % (zlib.crc32(record), record))
        except StorageError:
            raise
        except OSError as error:
            self._doubtful = True  # written, but a failed sync may have thrown it away
            raise StorageError(f"cannot sync {self.path}: {error.strerror}") from error


def _open(path: Path, durability: Durability) -> AppendLog:
    try:
        return AppendLog(path, durability=durability)
    except StorageError as error:
        if f"process {os.getpid()}:" in str(error):
            raise StorageError(
                f"{path} is open in this very process: close() the data set that has it"
            ) from error
        raise


def _entry(place: Place, item: TrajectoryItem) -> Entry:
    if isinstance(place.stored, Turn):
        return Entry(Line(*unpacked(place.stored.tail)), place.base, place.stored.cut)
    return Entry(Line(*values_of(item)), -1, ())


def _replay(path: Path, store: Store) -> None:
    """Repeat every recorded change; an entry's base must still be found by its number."""
    entries: list[Stored] = []
    for number, record in enumerate(_checked_records(path), start=1):
        try:
            if number > 1:
                _apply(_DECODER.decode(record), store, entries)
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            raise StorageError(f"{path}:{number}: not a record of this journal: {error}") from error
    store.forget_recent()  # of turns, only what was new in them was at hand here


def _apply(record: Record, store: Store, entries: list[Stored]) -> None:
    if record.entry is not None:
        _add(record.entry, store, entries)
    outcomes = record.scored or []
    for outcome in outcomes:
        if outcome.entry is not None:
            _add(outcome.entry, store, entries)
    store.stop_waiting(outcome.number for outcome in outcomes)


def _add(entry: Entry, store: Store, entries: list[Stored]) -> None:
    item = from_values(values_in(entry.item))
    stored: Stored = packed(item)
    if entry.base >= 0:
        stored = Turn(packed(item), entry.cut, entries[entry.base])
    store.add(Place(stored, entry.base), item)
    entries.append(stored)


def _refuse_foreign(path: Path) -> None:
    """Look before anything is moved: the last line of another file is not ours to set aside."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(_HEADER_LINE))
    if not _HEADER_LINE.startswith(start):
        raise StorageError(
            f"{path} is no journal of this version: it starts with {fields.shown(start[:32])} "
            "(TrajectoryDataset.from_jsonl reads JSON lines)"
        )


def _checked_records(path: Path) -> Iterator[bytes]:
    for number, line in enumerate(read_records(path), start=1):
        if not _is_whole(line):
            raise StorageError(
                f"{path}:{number}: the checksum does not fit {fields.shown(line)}: the file was "
                "changed after it was written"
            )
        yield line[9:]


def _is_whole(line: bytes) -> bool:
    return line[:9] == b"%08x " % zlib.crc32(line[9:])


def _set_damaged_tail_aside(path: Path) -> int:
    """Move damaged last lines to `<name>.torn`, as a loss of power can leave them.

    Only where at least one whole record precedes them and none follows: damage elsewhere is no
    torn tail, and is refused by `_checked_records`.
    """
    whole_until, position = 0, 0
    for line in read_records(path):
        position += len(line) + 1
        if _is_whole(line):
            whole_until = position
    if not whole_until or whole_until == position:
        return 0
    with path.open("r+b") as file:
        file.seek(whole_until)
        with path.with_name(path.name + ".torn").open("ab") as torn:
            torn.write(file.read())
        file.truncate(whole_until)
    return position - whole_until


_DECODER = msgspec.json.Decoder(Record)
