"""A folder that is wholly there or not at all, and that knows when a byte of it has changed.

Saved models, cached models and checkpoints all come to stand through `staged_folder`: the files
are written beside their place, listed with size and SHA-256 in `manifest.json`, forced onto the
disk, and take the name in one rename. Left out: what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypedDict

from orbiter.train.errors import StorageError, TrainError
from orbiter.train.storage import fsync_directory

MANIFEST = "manifest.json"
FORMAT = 1
"""Raised when a folder's files change in a way that older code cannot read."""
PARTIAL = ".partial"
"""How the name of an unfinished folder ends."""
_WRITER = re.compile(r"\.(\d+)(?:\.old)?\.partial$")
FULL = (errno.ENOSPC, errno.EDQUOT)


class FileEntry(TypedDict):
    """What the manifest says of one file."""

    size: int
    sha256: str
    mtime_ns: int


@contextlib.contextmanager
def staged_folder(target: Path, *, needed: int | None = None) -> Iterator[Path]:
    """Fill the folder that is yielded; at the end of the block it takes the place of `target`.

    `needed` is how many bytes it will take, for the message about a full disk.

    An error inside the block leaves what stood at `target` untouched and nothing else behind. A
    kill leaves at most an unfinished folder whose name starts with a dot: see `sweep_partials`.

    Raises:
        StorageError: the disk is full or not writable; names the path, and the bytes free.
    """
    staged = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    with disk_errors(target, needed=needed):
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            yield staged
            _write_manifest(staged)
            _take_place(staged, target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def verify_folder(folder: Path, *, trust_times: bool = False) -> None:
    """Check every file of a folder against its manifest.

    Args:
        folder: A folder that `staged_folder` made.
        trust_times: Take a file whose size and time of change are those of the manifest as
            unchanged, without reading it: for a cache of large files that is opened often.

    Raises:
        StorageError: a file is missing, altered, added, or a link; or there is no manifest.
    """
    entries = _read_manifest(folder)
    present = {path.relative_to(folder).as_posix() for path in _files(folder)} - {MANIFEST}
    if added := sorted(present - entries.keys()):
        raise StorageError(f"{folder} holds {added[0]!r}, which its manifest does not know")
    for name, entry in entries.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise StorageError(f"{path} is missing, or not a plain file")
        stat = path.stat()
        if stat.st_size != entry["size"]:
            raise StorageError(f"{path} has {stat.st_size} bytes, {entry['size']} were written")
        if trust_times and stat.st_mtime_ns == entry["mtime_ns"]:
            continue
        if file_sha256(path) != entry["sha256"]:
            raise StorageError(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep_partials(parent: Path) -> list[Path]:
    """Remove the unfinished folders that killed processes left in `parent`; return which.

    The folder of a process that lives is left alone, unless it is this one's.
    """
    stale = [folder for folder in sorted(parent.glob(f".*{PARTIAL}")) if not _in_use(folder)]
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return stale


@contextlib.contextmanager
def disk_errors(target: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn the system's refusals inside the block into a `StorageError` that names `target`.

    A writer in another language reports a full disk in words of its own; the bytes that are free
    are looked up here, so that the message holds them whoever met the end of the disk.
    """
    try:
        yield
    except TrainError:
        raise
    except OSError as error:
        raise StorageError(_explain(error, target, needed)) from error
    except Exception as error:
        if "os error" not in str(error).lower():
            raise
        raise StorageError(_explain(error, target, needed)) from error


def _explain(error: Exception, target: Path, needed: int | None) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code not in FULL and "os error 28" not in str(error).lower():
        return f"cannot write {target}: {error}"
    free = shutil.disk_usage(next(p for p in (target, *target.parents) if p.exists())).free
    need = f"{needed:,} bytes are needed, " if needed is not None else ""
    return (
        f"the disk is full: cannot write {target} ({need}{free:,} bytes are free); make room, or "
        "choose another folder; what stood there before is untouched"
    )


def _in_use(partial: Path) -> bool:
    """Say whether another living process is writing an unfinished folder."""
    writer = _WRITER.search(partial.name)
    if writer is None or int(writer[1]) == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(int(writer[1]), 0)  # signal 0 asks, and does nothing
    except ProcessLookupError:
        return False
    except (OverflowError, PermissionError):
        return True
    return True


def _write_manifest(folder: Path) -> None:
    """List every file with size and SHA-256, and force all of it onto the disk."""
    entries: dict[str, FileEntry] = {}
    for path in _files(folder):
        _fsync(path)
        stat = path.stat()
        entries[path.relative_to(folder).as_posix()] = FileEntry(
            size=stat.st_size, sha256=file_sha256(path), mtime_ns=stat.st_mtime_ns
        )
    (folder / MANIFEST).write_text(_manifest_text(entries), encoding="utf-8")
    _fsync(folder / MANIFEST)
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        fsync_directory(inner)
    fsync_directory(folder)


def _manifest_text(entries: Mapping[str, FileEntry]) -> str:
    """Return the one text that a manifest of these files can have: its own digest is in it."""
    files = json.dumps(entries, sort_keys=True)
    digest = hashlib.sha256(files.encode()).hexdigest()
    document = {"format": FORMAT, "digest": digest, "files": entries}
    return json.dumps(document, indent=1, sort_keys=True)


def _read_manifest(folder: Path) -> dict[str, FileEntry]:
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
        entries = {_inside(name, path): _entry(it) for name, it in document["files"].items()}
    except FileNotFoundError as error:
        raise StorageError(f"{folder} has no {MANIFEST}: it was never finished") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if text != _manifest_text(entries):
        raise StorageError(f"{path} was altered, or written by another version of this package")
    return entries


def _entry(entry: dict[str, object]) -> FileEntry:
    size, sha256, mtime_ns = entry["size"], entry["sha256"], entry["mtime_ns"]
    if not (isinstance(size, int) and isinstance(sha256, str) and isinstance(mtime_ns, int)):
        raise TypeError(f"a file's entry must be size, sha256, mtime_ns, got {entry!r}")
    return FileEntry(size=size, sha256=sha256, mtime_ns=mtime_ns)


def _inside(name: str, manifest: Path) -> str:
    """Return a manifest's file name, or refuse it where it would lead out of the folder."""
    path = PurePosixPath(name)
    strange = "\\" in name or ":" in name or "\0" in name
    if strange or not path.parts or path.is_absolute() or ".." in path.parts:
        raise StorageError(f"{manifest} names {name!r}, which is not a file inside its folder")
    return name


def _files(folder: Path) -> list[Path]:
    """Return what lies in a folder and is no folder itself, links included, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _fsync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _take_place(staged: Path, target: Path) -> None:
    """Rename `staged` to `target`; what stands there steps aside first and is then removed."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.old{PARTIAL}")
    if target.exists():
        target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    fsync_directory(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
