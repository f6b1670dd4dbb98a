"""A data set on disk: an append-only log with one checksummed record per line.

    <crc32> {"journal": "orbiter.train.trajectory", "version": 2}      the first line
    <crc32> {"entry": [item, base, cut]}                               captured; kept or waiting
    <crc32> {"scored": [[number, [item, base, cut] or null], ...]}     an episode got its reward

A checksum continues from that of the line before, so a line that was changed, repeated, removed or
moved is found. In files of version 1, which are still read and continued, it covers its line alone.

The `item` of an entry is stored without the first `cut` elements of its shared fields
(`turns.SHARED`), which it has in common with entry number `base`. A whole episode is scored in one
record, so a crash leaves it either scored or waiting. The journal stores items as the strategy
returned them; reopening does not call the strategy again.
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
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Source
from orbiter.train.storage import AppendLog, Durability, SyncError, read_records
from orbiter.train.trajectory.codec import Line, values_in
from orbiter.train.trajectory.item import TrajectoryItem, from_values, values_of
from orbiter.train.trajectory.store import ItemsView, Place, Store
from orbiter.train.trajectory.turns import Shortened, Stored, packed, restore, unpacked

log = logging.getLogger(__name__)

_HEADER = b'{"journal":"orbiter.train.trajectory","version":2}'
_HEADER_1 = _HEADER.replace(b"2", b"1")
_HEADER_LINES = tuple(b"%08x %b\n" % (zlib.crc32(text), text) for text in (_HEADER, _HEADER_1))


class Entry(msgspec.Struct, array_like=True):
    """One item without the prefixes that it shares with an earlier entry."""

    item: Line
    base: int
    cut: tuple[int, ...]


class ScoredEntry(msgspec.Struct, array_like=True):
    """The result of scoring a waiting entry: the item that was kept, or None."""

    number: int
    entry: Entry | None


class DatasetLine(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One line of the journal: exactly one of the two fields is set."""

    entry: Entry | None = None
    scored: list[ScoredEntry] | None = None


class Recovery(NamedTuple):
    """What was found when the journal was opened."""

    items: int
    waiting: int
    torn_bytes: int
    """Bytes of an unfinished last record, moved aside to `<name>.torn`; never acknowledged."""


class StoreJournal:
    """A write-ahead log of a `Store`: writes each change first, and replays them on opening."""

    def __init__(self, path: str | os.PathLike[str], store: Store, durability: Durability) -> None:
        """Open or create the journal at `path` and fill `store` with what it holds.

        Raises:
            StorageError: the file is in use by another process, is not a journal, or is damaged
                before its end; the message names the path and the line.
        """
        self.path = Path(path)
        # Before anything is opened to write: AppendLog would move a torn tail aside.
        _refuse_foreign(self.path)
        self._log = _open(self.path, durability)
        # After a fork both processes would write to the same file with separate checksums.
        self._owner = os.getpid()
        self._doubtful = False
        self._checksums = _Checksums()
        try:
            torn = self._log.recovered.torn_bytes + _set_unwritten_tail_aside(self.path)
            _replay(self.path, store, self._checksums)
            # A new or empty file; the header is a record like any other, with a checksum.
            if not self.path.stat().st_size:
                self._append(_HEADER)
        except BaseException:
            self._log.close()
            raise
        self.recovery = Recovery(len(store.kept), len(store.waiting), torn)
        if torn:
            log.warning(
                "%s: the last %d bytes, an unfinished and never acknowledged record, were moved to "
                "%s.torn",
                path,
                torn,
                path,
            )

    def write_entry(self, place: Place, item: TrajectoryItem) -> None:
        """Write an item before it is added to the store."""
        if isinstance(place.stored, Shortened):
            self._append(fields.encode(DatasetLine(entry=_entry(place, item))))
        else:  # the same bytes in two thirds of the time
            self._append(b'{"entry":[%b,-1,[]]}' % fields.encode(Line(*values_of(item))))

    def write_scored(
        self, outcomes: Sequence[tuple[int, tuple[Place, TrajectoryItem] | None]]
    ) -> None:
        """Write the results for all waiting entries of an episode as one record."""
        scored = [ScoredEntry(number, kept and _entry(*kept)) for number, kept in outcomes]
        self._append(fields.encode(DatasetLine(scored=scored)))

    def doubt(self) -> None:
        """Refuse further writes: the last record on disk may be missing in memory."""
        self._doubtful = True

    def close(self) -> None:
        """Sync if the durability requires it, and let another process write."""
        self._log.close()

    def _append(self, record: bytes) -> None:
        if self._doubtful:
            raise StorageError(
                f"{self.path}: a write was interrupted; close this data set and open it again"
            )
        if os.getpid() != self._owner:
            raise StorageError(
                f"{self.path} was opened by process {self._owner}, and this is its child "
                f"{os.getpid()}: give every process its own journal"
            )
        try:
            checksum = self._checksums.of(record)
            self._log.append(b"%08x %b" % (checksum, record))
            # Only after the write, so that a failed append does not break the chain.
            self._checksums.last = checksum
        except SyncError:
            self._doubtful = True  # written, but a failed sync may have thrown it away
            raise


def read_journal(source: Source) -> Iterator[TrajectoryItem]:
    """Yield the items of a journal, those with a reward first, then those that wait for one.

    Takes no lock and changes nothing, so another process may be writing the journal: what it has
    acknowledged so far is read.

    Raises:
        DataError: a line is damaged; with `on_error="skip"` the items before it are yielded.
        StorageError: the file cannot be read.
    """
    path, store = Path(source.path), Store()
    source.open().close()  # opening the file first gives a clear error if it cannot be read
    try:
        _refuse_foreign(path)
        _replay(path, store, _Checksums())
    except StorageError as error:
        line, _, reason = str(error).removeprefix(f"{path}:").partition(": ")
        # The error's text has the form path:line: reason; the line is read back from it.
        source.refuse(int(line) if line.isdigit() else 1, reason or str(error), error)
    yield from ItemsView(store.kept)
    yield from map(restore, store.waiting.values())


def is_journal(head: bytes) -> bool:
    """Return whether a file with these first bytes is a journal."""
    return head.startswith(_HEADER_LINES)


def _open(path: Path, durability: Durability) -> AppendLog:
    try:
        return AppendLog(path, durability=durability)
    except StorageError as error:
        # The two cases need different advice: in this process, the other data set can be closed.
        if f"process {os.getpid()}:" in str(error):
            raise StorageError(
                f"{path} is already open in this process: close() the data set that uses it"
            ) from error
        if "held by process" in str(error):
            raise StorageError(
                f"{error}; formats.read({str(path)!r}) reads what it holds so far"
            ) from error
        raise


def _entry(place: Place, item: TrajectoryItem) -> Entry:
    if isinstance(place.stored, Shortened):
        return Entry(Line(*unpacked(place.stored.tail)), place.base, place.stored.cut)
    return Entry(Line(*values_of(item)), -1, ())


class _Checksums:
    """Computes the checksum of each line."""

    def __init__(self) -> None:
        self.last = 0
        """Checksum of the line before."""
        self.chained = True
        """Whether a checksum continues from the one before; not in files of version 1."""

    def of(self, record: bytes) -> int:
        return zlib.crc32(record, self.last if self.chained else 0)


def _replay(path: Path, store: Store, checksums: _Checksums) -> None:
    """Apply every recorded change to the store, keeping all entries so that bases can be found."""
    entries: list[Stored] = []
    for number, record in enumerate(_checked_records(path, checksums), start=1):
        try:
            # Line 1 is the header, which has no entry.
            if number > 1:
                _apply(_DECODER.decode(record), store, entries)
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            raise StorageError(f"{path}:{number}: not a record of this journal: {error}") from error
    store.forget_recent()  # replayed turns held only their tails, not the full text


def _apply(record: DatasetLine, store: Store, entries: list[Stored]) -> None:
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
        stored = Shortened(packed(item), entry.cut, entries[entry.base])
    store.add(Place(stored, entry.base), item)
    entries.append(stored)


def _refuse_foreign(path: Path) -> None:
    """Refuse a file that is not a journal before anything in it is moved or truncated."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(_HEADER_LINES[0]))
    # A shorter file may be a header that was cut off by a crash, so a prefix is accepted.
    if not any(header.startswith(start) for header in _HEADER_LINES):
        raise StorageError(
            f"{path} is not a journal of this version: it starts with {fields.shown(start[:32])} "
            "(TrajectoryDataset.from_jsonl reads JSON lines)"
        )


def _checked_records(path: Path, checksums: _Checksums) -> Iterator[bytes]:
    for number, line in enumerate(read_records(path), start=1):
        record = line[9:]
        if number == 1:
            # The version decides how all checksums of the file are computed, that of the header
            # included.
            checksums.chained = record != _HEADER_1
        checksum = checksums.of(record)
        if line[:9] != b"%08x " % checksum:
            raise StorageError(
                f"{path}:{number}: the checksum does not match {fields.shown(line)}: the line was "
                "changed after it was written"
                + (
                    ", or lines before it were removed, repeated or moved"
                    if checksums.chained
                    else ""
                )
            )
        checksums.last = checksum
        yield record


def _set_unwritten_tail_aside(path: Path) -> int:
    """Move last lines with zero bytes, which a power loss can leave, to `<name>.torn`.

    A file system that had not written the data yet returns zeros, which no record contains. Any
    other damage is not a torn tail: `_checked_records` refuses it.
    """
    written_until, position = 0, 0
    for line in read_records(path):
        position += len(line) + 1
        if b"\0" not in line:
            written_until = position
    # Nothing but zeros is not a torn tail but a file that was never written.
    if not written_until or written_until == position:
        return 0
    with path.open("r+b") as file:
        file.seek(written_until)
        with path.with_name(path.name + ".torn").open("ab") as torn:
            torn.write(file.read())
        file.truncate(written_until)
    return position - written_until


_DECODER = msgspec.json.Decoder(DatasetLine)
