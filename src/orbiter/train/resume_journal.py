"""A file of JSON objects that a run is resumed from, one a line, each chained to the line before.

    {"step":3,"loss":0.41,"_crc":"1f0c22b9"}

`_crc` is the CRC-32 of the record, continued from the checksum of the line before. A line that was
changed, repeated, removed or moved therefore no longer fits, and is refused by file and line. Only
lines missing at the end look like a crash before they were written. Lines of older versions have no
checksum; they are accepted at the start of a file, and the first line with one covers them all.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from orbiter.train.errors import StorageError
from orbiter.train.storage import AppendLog, Durability, Recovered, read_records

_KEY = b',"_crc":"'
_END = b'"}'
_SUFFIX = len(_KEY) + 8 + len(_END)


class JournalLine(NamedTuple):
    """One record of a journal and where it is."""

    number: int
    """The line in the file, from 1."""
    start: int
    """The byte at which it begins."""
    record: bytes
    """The JSON object, without its checksum."""
    before: int
    """The checksum of the line before."""


class ResumeJournal:
    """The only writer of a journal: replays what earlier processes wrote, then appends."""

    def __init__(self, path: str | os.PathLike[str], *, durability: Durability = "process") -> None:
        """Open or create the journal at `path`; an unfinished last line is moved aside.

        Raises:
            StorageError: another living process writes it, or it is not a file.
        """
        self._log = AppendLog(path, durability=durability)
        self.path = self._log.path
        self._checksum: int | None = None
        self._appending = threading.Lock()

    @property
    def recovered(self) -> Recovered:
        """What was on disk when the journal was opened."""
        return self._log.recovered

    def replay(self) -> Iterator[JournalLine]:
        """Yield the records of earlier processes.

        Raises:
            StorageError: a line is damaged; the message names the file and the line.
        """
        checksum = _Checksum()
        yield from _lines(self.path, checksum)
        # Only after the whole file was read: the next line continues from the last checksum.
        self._checksum = checksum.value

    def cut(self, line: JournalLine) -> None:
        """Remove this line and all lines after it."""
        # The log appends by O_APPEND, so the next record lands at the new end without a seek.
        os.truncate(self.path, line.start)
        self._checksum = line.before

    def clear(self) -> None:
        """Remove all lines."""
        os.truncate(self.path, 0)
        self._checksum = 0

    def append(self, record: bytes) -> None:
        """Add a JSON object with at least one field, on one line; threads may do so at once."""
        # Two records with the same checksum before them would look like a line that was repeated.
        with self._appending:  # a line's checksum depends on the line before it
            if self._checksum is None:  # nobody has replayed the file, which checks it
                for _ in self.replay():
                    pass
            before = self._checksum or 0
            # Assigned only after the write: a failed append leaves the chain as it is.
            checksum = zlib.crc32(record, before)
            self._log.append(b"%b%b%08x%b" % (record[:-1], _KEY, checksum, _END))
            self._checksum = checksum

    def sync(self) -> None:
        """Force everything appended so far to disk."""
        self._log.sync()

    def close(self) -> None:
        """Release the file and its lock."""
        self._log.close()


def read_journal(path: str | os.PathLike[str]) -> Iterator[JournalLine]:
    """Yield the records of a journal that may still be growing; a missing file is empty.

    Raises:
        StorageError: a line is damaged; the message names the file and the line.
    """
    return _lines(path, _Checksum())


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the names whose values differ between two descriptions of a run, in order."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


class _Checksum:
    """The checksum of the lines read so far."""

    def __init__(self) -> None:
        self.value = 0
        self.chained = False
        """Whether a line with a checksum was read; all later ones must have one too."""


def _lines(path: str | os.PathLike[str], checksum: _Checksum) -> Iterator[JournalLine]:
    start = 0
    for number, line in enumerate(read_records(path), start=1):
        before = checksum.value
        # Split off by length, since the record itself may contain the key of the checksum.
        record, stored = _split(line)
        checksum.value = zlib.crc32(record, before)
        if stored is not None and stored != b"%08x" % checksum.value:
            raise StorageError(
                f"{os.fspath(path)}:{number} is not a record as it was written: its checksum does "
                "not match, so this line was changed, or lines before it were removed, repeated "
                "or moved; restore the file from a copy"
            )
        if stored is None and checksum.chained:
            raise StorageError(
                f"{os.fspath(path)}:{number} is not a record as it was written: it has no "
                "checksum, unlike the lines before it; restore the file from a copy"
            )
        # From here on every line must have one, or a line could be added unnoticed.
        checksum.chained = stored is not None
        yield JournalLine(number, start, record, before)
        # The newline that read_records has removed.
        start += len(line) + 1


def _split(line: bytes) -> tuple[bytes, bytes | None]:
    """Return the record and its checksum; None if the line has no checksum."""
    tail = line[-_SUFFIX:]
    # The checksum is written last, so a torn line never looks complete.
    if tail.startswith(_KEY) and tail.endswith(_END):
        return line[:-_SUFFIX] + b"}", tail[len(_KEY) : -len(_END)]
    return line, None
