"""Report a disk that is full or cannot be written, with its path, the needed and the free bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orbiter.train.errors import StorageError, TrainError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's codes for a full disk, a used-up quota, and a file that reached its limit."""


@contextlib.contextmanager
def disk_errors(target: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn operating-system errors about writing `target` into a `StorageError` that names it.

    `needed` is the number of bytes to be written. Libraries written in other languages report a
    full disk in their own wording; the free bytes are looked up here, so that the message contains
    them whichever library failed. An error about a file elsewhere passes through.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_error(error, target):
            raise
        raise StorageError(explain(error, target, needed)) from error


def is_disk_error(error: Exception, target: Path) -> bool:
    """Return whether the system refused to write `target`, a folder above it, or a file for it."""
    # Connection errors and timeouts are OSErrors that have nothing to do with a disk.
    if isinstance(error, TrainError | ConnectionError | TimeoutError):
        return False
    if not isinstance(error, OSError):
        return "os error" in str(error).lower()  # as libraries written in Rust word it
    # An error without a file name, such as one of a failed write, is taken to be about the
    # target.
    return error.filename is None or _is_about(error.filename, target)


def explain(error: Exception, target: Path, needed: int | None = None) -> str:
    """Return the message for an error that writing `target` met."""
    code = error.errno if isinstance(error, OSError) else None
    if code not in FULL and "os error 28" not in str(error).lower():
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"cannot write {target}: {reason}; make it writable, or choose another folder"
    need = f"{needed:,} bytes are needed, " if needed is not None else ""
    limit = "the file reached its size limit" if code == errno.EFBIG else "the disk is full"
    return (
        f"{limit}: cannot write {target} ({need}{free_bytes(target):,} bytes are free); make room, "
        "or choose another folder; existing files there are untouched"
    )


def free_bytes(path: Path) -> int:
    """Return how many bytes are free on the disk that holds `path`, which need not exist yet."""
    # The closest folder that exists is on the disk where the path will be.
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def is_read_only(path: Path) -> bool:
    """Return whether the disk that holds `path`, which need not exist yet, is mounted read-only."""
    if not hasattr(os, "statvfs"):
        return False
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    return bool(os.statvfs(there).f_flag & os.ST_RDONLY)


def _is_about(name: object, target: Path) -> bool:
    """Return whether a file's name is `target`, a folder above it, or a file made for it."""
    if not isinstance(name, str | bytes | os.PathLike):  # a file descriptor
        return True
    path, target = Path(os.fsdecode(name)).absolute(), target.absolute()
    inside = path == target or target in path.parents or path in target.parents
    return inside or str(path).startswith(f"{target.with_name('.' + target.name)}.")
