"""Durable files: an atomic write, an append-only log, a single-writer lock.

Everything durable in this package (trajectories, pipeline journals, metrics, checkpoints) is built
on these three. They know nothing of formats: a record is bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

from orbiter.train.contained import open_plain
from orbiter.train.disk import disk_errors, explain, is_disk_error
from orbiter.train.errors import StorageError

Durability = Literal["process", "group", "disk"]
"""Which failures an acknowledged record survives: "process": a process crash; "group": also a power
loss, except for the last group of records; "disk": also a power loss."""

GROUP_SIZE = 64
"""Records between two fsyncs with durability "group"."""
PAUSE_SECONDS = 15e-6
"""After a pause this long, and every `GROUP_SIZE` records, an append checks that the log still has
its name. In a tight loop the check would cost a quarter of the append."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, needed: int | None = None) -> Iterator[IO[bytes]]:
    """Write a file completely or not at all.

    The bytes go to a temporary file next to `path`, are fsynced, and get their name in one rename.
    An error inside the block leaves an existing file unchanged and removes the temporary file.
    `needed` is the number of bytes to be written, for the error message about a full disk; without
    it, the message has the number written so far.

    Raises:
        StorageError: the disk is full or cannot be written; names the path and the free bytes.
    """
    target = Path(path)
    # In the same folder, since a rename is atomic only within one file system; the process id
    # keeps two writers apart.
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # The position is asked for here, while the file is still open.
                needed = needed or _position(file)
                raise
        # Only after the fsync: otherwise a power loss could leave the new name with old or no
        # content.
        staged.replace(target)
        # A rename is durable only once the folder itself is on disk.
        fsync_directory(target.parent)
    except BaseException as error:
        # Also after Ctrl-C, so no temporary file is left behind.
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        if isinstance(error, Exception) and is_disk_error(error, target):
            raise StorageError(explain(error, target, needed)) from error
        raise


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file completely or not at all, and create its folder; see `atomic_write`.

    Raises:
        StorageError: the disk is full or cannot be written; names the path and the bytes needed.
    """
    target = Path(path)
    with disk_errors(target, needed=len(content)):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, needed=len(content)) as file:
        file.write(content)


def _position(file: IO[bytes]) -> int | None:
    """Return how many bytes were written to a file, with those that are still buffered."""
    try:
        return file.tell() or None
    except (OSError, ValueError):
        return None


def fsync_directory(path: Path) -> None:
    """Make renames and new names in a folder durable, if the system supports it."""
    if sys.platform == "win32":
        return  # Windows has no handle for a folder; NTFS journals the rename itself
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Recovered(NamedTuple):
    """What was on disk when a log was opened."""

    records: int
    """Number of complete records."""
    torn_bytes: int
    """Size of an unfinished last record, moved to `<name>.torn`; 0 if there was none."""


class SyncError(StorageError):
    """What was appended to a log could not be forced to disk, so it may be lost."""


class AppendLog:
    """An append-only file of lines, one `write` per record: a kill loses nothing acknowledged.

    A record must not contain a newline byte. A kill during a write can leave an unfinished last
    line; the next opening detects it, moves it aside and counts it in `recovered`.
    """

    def __init__(self, path: str | os.PathLike[str], *, durability: Durability = "process") -> None:
        """Open or create the log at `path`; a missing parent folder is created.

        Raises:
            StorageError: another live process has the log open for writing, or it is not a file.
        """
        self.path = Path(path)
        self.durability = durability
        self._file = -1
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
            try:
                # Locked before the tail is looked at: a living writer's line is not torn.
                self._file = _open_alone(self.path)
                self.recovered = _set_torn_tail_aside(self.path)
                if durability != "process":
                    fsync_directory(self.path.parent)
            except BaseException:
                self._release()  # otherwise nothing in this process could open the log again
                raise
        self._unsynced = 0
        self._unchecked, self._appended = 0, time.monotonic()

    def append(self, record: bytes) -> None:
        """Add one record; on return it is as durable as `durability` promises."""
        line = record + b"\n"
        now = time.monotonic()
        self._unchecked += 1
        if now - self._appended > PAUSE_SECONDS or self._unchecked >= GROUP_SIZE:
            self._check_name()
        self._appended = now
        try:
            # One write call per record: with O_APPEND the system puts it at the end as a whole.
            written = os.write(self._file, line)
            if written < len(line):
                self._complete(line, written)
        except OSError as error:
            raise StorageError(explain(error, self.path, len(line))) from error
        if self.durability == "process":
            return
        self._unsynced += 1
        if self.durability == "disk" or self._unsynced >= GROUP_SIZE:
            self.sync()

    def _complete(self, line: bytes, written: int) -> None:
        """Finish a partial write, or undo it, so that no partial record remains."""
        # Where the record began, to cut it off again if the rest cannot be written.
        start = os.lseek(self._file, 0, os.SEEK_END) - written
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, start)
            raise

    def _check_name(self) -> None:
        """Raise if the file at `path` is no longer the one that is written."""
        self._unchecked = 0
        try:
            # By device and inode, since another file may have taken the name.
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError:
            same = False
        if not same:
            raise StorageError(
                f"{self.path} is no longer the file that this process writes: it was renamed, "
                "removed or replaced; give it its name back, or open the new file"
            )

    def sync(self) -> None:
        """Force everything appended so far to disk.

        Raises:
            SyncError: the system could not; what was appended may be lost.
        """
        try:
            # A failed fsync must not be tried again: Linux may have marked the unwritten pages as
            # clean.
            os.fsync(self._file)
        except OSError as error:
            raise SyncError(f"cannot sync: {explain(error, self.path)}") from error
        self._unsynced = 0

    def close(self) -> None:
        """Sync if the durability requires it, then release the file and the lock.

        Raises:
            StorageError: the file was renamed, removed or replaced while it was in use.
        """
        if self._file < 0:
            return
        try:
            if self._unsynced:
                self.sync()
            if self._unchecked:
                # Also at the end, or the last records could lie in a file that nobody finds.
                self._check_name()
        finally:
            self._release()

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the complete records of a log without the newline, skipping an unfinished last line.

    Needs no lock: a log can be read while another process writes it. A missing file is empty.

    Raises:
        StorageError: it is a device or a pipe, which might never end.
    """
    with contextlib.suppress(FileNotFoundError), open_plain(path) as file:
        # A last line without a newline is a write in progress, or one that was cut off by a
        # crash.
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def _open_alone(path: Path) -> int:
    """Open or create a log to append to, and lock the file itself.

    The lock file next to it keeps out writers that use the same name; this lock also keeps out
    those that come through a link, or after the lock file was removed.
    """
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is not a file, so it cannot be a log")
    # O_BINARY, because Windows would otherwise write two bytes for each newline.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        _lock_log(handle)
    except OSError as error:
        os.close(handle)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise  # a file system without locks, not another writer
        raise StorageError(
            f"{path} is being written by another process, under another name or since its lock "
            "file was removed: only one process may write it at a time"
        ) from error
    return handle


def _set_torn_tail_aside(path: Path) -> Recovered:
    count, whole = 0, 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, whole = count + 1, whole + len(line)
            else:
                # Kept instead of deleted, so that a person can look at it.
                with path.with_name(path.name + ".torn").open("ab") as torn:
                    torn.write(line + b"\n")
    torn_bytes = path.stat().st_size - whole
    if torn_bytes:
        os.truncate(path, whole)
    return Recovered(count, torn_bytes)


_LOCK_BYTES = 32
"""Size of a lock file: one byte to lock, the process id, spaces and a newline."""


def _open_lock(path: Path) -> int:
    """Open or create a lock file; reject links and files that this package did not write."""
    # O_NOFOLLOW closes the gap between the check for a link below and the opening.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    if path.is_symlink():
        raise StorageError(f"{path} is a link, so it is not used as a lock file; remove it")
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is not a file, so it cannot be a lock file; remove it")
    handle = os.open(path, flags, 0o666)
    status = os.fstat(handle)
    # A link's target, or a file that somebody else wrote, would be overwritten with a process id.
    if status.st_nlink > 1 or status.st_size > _LOCK_BYTES:
        os.close(handle)
        what = "has a second name (a hard link)" if status.st_nlink > 1 else "holds other content"
        raise StorageError(f"{path} {what}, so it is not used as a lock file; remove it")
    return handle


class FileLock:
    """Marks this process as the writer; the system releases it however the process ends."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the lock at `path`.

        Raises:
            StorageError: another living process holds it; the message names its process id.
        """
        self.path = Path(path)
        with disk_errors(self.path):
            self._handle = _open_lock(self.path)
        try:
            _lock(self._handle)
        except OSError as error:
            owner = (
                # Byte 0 is locked on Windows, so the process id begins at byte 1.
                os.pread(self._handle, _LOCK_BYTES, 1).decode("ascii", "replace").strip()
                if (hasattr(os, "pread"))
                else "?"
            )
            os.close(self._handle)
            raise StorageError(
                f"{self.path} is held by process {owner or '?'}: only one process may write here "
                "at a time"
            ) from error
        # Overwritten, not truncated: despite the checks, a hard link may lead to a foreign file.
        # On a full disk the lock holds all the same, only its owner cannot be named to others.
        with contextlib.suppress(OSError):
            if os.fstat(self._handle).st_size <= _LOCK_BYTES:
                os.write(self._handle, f" {os.getpid():<{_LOCK_BYTES - 2}}\n".encode("ascii"))

    def release(self) -> None:
        """Let another process, or another object in this one, become the writer."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        # Only byte 0 is locked, so that others can read the process id for their error message.
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _lock_log(handle: int) -> None:
        """Do nothing: a lock would also keep readers out."""
else:
    import fcntl

    def _lock(handle: int) -> None:
        # flock, not lockf: lockf's lock is lost as soon as the process closes any handle of the
        # file.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    _lock_log = _lock
