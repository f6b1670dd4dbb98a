"""Keep reads and writes inside a folder that somebody else may have made.

A run's folder can come from a colleague or from the web. Before a file in it is opened, the whole
folder is checked: no link leaves it, and nothing in it is a device or a pipe, which would block
the reader or never end. A race with somebody who changes the folder meanwhile is not prevented.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO

from orbiter.train.errors import StorageError

OPENED = (".json", ".jsonl", ".toml", ".html", ".lock", ".torn", ".txt", ".log")
"""Suffixes of the files that this package opens in a run's folder."""
ENTERED = ("checkpoints", "baseline")
"""Folders in a run's folder in which this package writes and removes files."""

LONGEST_NAME = 255
"""Bytes of the longest file name that common file systems allow."""
LONGEST_PATH = 1024
"""Bytes of the longest path below a folder; macOS allows no more."""


def check_contained(folder: str | os.PathLike[str], *, to_write: bool = False) -> None:
    """Check the files of a folder that this package may open; the folder need not exist.

    Args:
        folder: The folder of a run, a pipeline or a data set.
        to_write: Also refuse hard links, since writing to one would change the other file.

    Raises:
        StorageError: an entry is a link that leaves the folder, a device, a pipe or a socket, or a
            hard link if `to_write`.
    """
    try:
        with os.scandir(folder) as listed:
            opened = [e for e in listed if e.name in ENTERED or e.name.endswith(OPENED)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot read {os.fspath(folder)}: {error.strerror}") from error
    for entry in sorted(opened, key=lambda entry: entry.name):
        if entry.is_symlink():
            _check_link(Path(folder), entry)
        elif not entry.is_file() and not entry.is_dir():
            raise StorageError(f"{entry.path} is a device, a pipe or a socket; remove it")
        elif to_write and entry.is_file() and entry.stat().st_nlink > 1:
            raise StorageError(
                f"{entry.path} has a second name (a hard link), so writing to it would change "
                "another file too; replace it by a copy"
            )


def open_plain(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading, without waiting for the other end of a pipe.

    Raises:
        StorageError: it is a device, a pipe or a socket.
        OSError: it cannot be opened.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to would otherwise wait for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    # A folder passes, so that reading it fails with the usual error.
    if not stat.S_ISREG(os.fstat(handle).st_mode) and not stat.S_ISDIR(os.fstat(handle).st_mode):
        os.close(handle)
        raise StorageError(f"{os.fspath(path)} is a device, a pipe or a socket, not a file")
    return os.fdopen(handle, "rb")


def inside(folder: Path, name: object, source: str) -> Path:
    """Return the path of a file that data or a manifest names, if it is inside the folder.

    Raises:
        StorageError: the name is absolute, contains `..`, or leaves the folder through a link.
    """
    path = folder / str(name) if is_name_inside(name) else folder
    if path == folder or not _is_below(path, folder):
        raise StorageError(f"{source} names {name!r}, which is not a file inside its folder")
    return path


def is_name_inside(name: object) -> bool:
    """Tell whether a name is a relative path that cannot leave its folder, except by a link.

    It must be UTF-8 without `..`, backslashes, colons and null bytes, and short enough for common
    file systems.
    """
    # A backslash or colon would be a path or a drive on Windows.
    if not isinstance(name, str) or any(mark in name for mark in "\0\\:"):
        return False
    parts = PurePosixPath(name)
    inside_folder = bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts
    return inside_folder and _fits_a_file_system(name)


def _fits_a_file_system(name: str) -> bool:
    """Tell whether a relative path is UTF-8 and neither too long nor has a part that is."""
    try:
        path = name.encode()
    except UnicodeEncodeError:
        return False
    return len(path) <= LONGEST_PATH and all(len(p) <= LONGEST_NAME for p in path.split(b"/"))


def _check_link(folder: Path, entry: os.DirEntry[str]) -> None:
    target = Path(entry.path).resolve()
    if not _is_below(target, folder):
        raise StorageError(
            f"{entry.path} is a link that leaves {folder} (to {target}); replace it by a copy, or "
            "remove it"
        )
    if target.exists() and not target.is_file() and not target.is_dir():
        raise StorageError(f"{entry.path} links to a device, a pipe or a socket; remove it")


def _is_below(path: Path, folder: Path) -> bool:
    try:
        # Resolved on both sides, since the folder itself may be reached through a link.
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a ring of links
        return False
