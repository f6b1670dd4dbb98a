"""Write folders atomically, and detect later changes to their files.

Saved models, cached models and checkpoints are all written through `staged_folder`: the files go to
a temporary folder next to the target, are listed with size and SHA-256 in `manifest.json`, are
flushed to disk, and take the target's name in one rename.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from orbiter.train.contained import is_name_inside
from orbiter.train.disk import disk_errors
from orbiter.train.errors import StorageError
from orbiter.train.storage import fsync_directory

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the format; incremented when older code could not read the new one."""
PARTIAL = ".partial"
"""Suffix of an unfinished folder's name."""
OLD = ".old"
"""Further suffix of a folder that is being replaced."""
AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
"""Constants of renameat2 (Linux) and renamex_np (macOS)."""
_WRITER = re.compile(r"\.(\d+)(?:\.old)?\.partial$")


class FileEntry(TypedDict):
    """The manifest's entry for one file."""

    size: int
    sha256: str
    mtime_ns: int


@contextlib.contextmanager
def staged_folder(target: Path, *, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces `target` at the end of the block.

    `needed` is the number of bytes to be written, for the error message about a full disk.

    An error inside the block leaves `target` untouched and removes the temporary folder. If the
    process is killed, at most an unfinished folder remains, whose name starts with a dot; see
    `sweep_partials`.

    Raises:
        StorageError: the disk is full or not writable; names the path and the free bytes.
    """
    # Beside the target, on the same file system, where a rename is atomic.
    staged = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    with disk_errors(target, needed=needed):
        try:
            # First, since an earlier process may have been killed between its two renames.
            restore_folder(target)
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            yield staged
            _write_manifest(staged)
            _swap_into_place(staged, target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def verify_folder(folder: Path, *, trust_times: bool = False) -> None:
    """Check every file of a folder against its manifest.

    Args:
        folder: A folder written by `staged_folder`.
        trust_times: Do not read a file whose size and modification time match the manifest, but
            assume it is unchanged. Meant for a cache of large files that is opened often.

    Raises:
        StorageError: a file is missing, modified, added, or a link, or the manifest is missing.
    """
    entries = _read_manifest(folder)
    # An added file matters: loaders pick up files by name, so it could replace weights.
    present = {path.relative_to(folder).as_posix() for path in _files(folder)} - {MANIFEST}
    if added := sorted(present - entries.keys()):
        raise StorageError(f"{folder} holds {added[0]!r}, which is not in its manifest")
    for name, entry in entries.items():
        path = folder / name
        # A link could point to a file that changes after this check.
        if path.is_symlink() or not path.is_file():
            raise StorageError(f"{path} is missing, or not a plain file")
        stat = path.stat()
        if stat.st_size != entry["size"]:
            raise StorageError(f"{path} has {stat.st_size} bytes, {entry['size']} were written")
        if trust_times and stat.st_mtime_ns == entry["mtime_ns"]:
            continue
        if file_sha256(path) != entry["sha256"]:
            raise StorageError(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}")


def verify_file(path: Path) -> None:
    """Check one file against the manifest beside it, if that is ours and names the file.

    Its content is only read if its size or modification time differ from the manifest's.

    Raises:
        StorageError: the file is not the one that was written.
    """
    try:
        document = json.loads((path.parent / MANIFEST).read_bytes())
        is_ours = document.keys() == {"format", "digest", "files"}
    except (OSError, ValueError, AttributeError, RecursionError):
        is_ours = False
    entry = _read_manifest(path.parent).get(path.name) if is_ours else None
    if entry is None:
        return
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) == (entry["size"], entry["mtime_ns"]):
        return
    if stat.st_size != entry["size"] or file_sha256(path) != entry["sha256"]:
        raise StorageError(
            f"{path} was altered: its SHA-256 is not the one in {MANIFEST}; save the model again, "
            f"or delete {MANIFEST} if you changed the weights on purpose"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep_partials(parent: Path) -> list[Path]:
    """Remove unfinished folders that killed processes left in `parent`, and return their paths.

    Folders of other running processes are left alone; a replaced one gets its name back.
    """
    # Before the sweep, which would delete a replaced folder as if it were unfinished.
    for aside in parent.glob(f".*{OLD}{PARTIAL}"):
        restore_folder(parent / re.sub(r"\.\d+\.old\.partial$", "", aside.name[1:]))
    stale = [folder for folder in sorted(parent.glob(f".*{PARTIAL}")) if not _in_use(folder)]
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return stale


def _in_use(partial: Path) -> bool:
    """Return whether another running process is writing an unfinished folder."""
    writer = _WRITER.search(partial.name)
    # Windows has no signal 0: os.kill would end the process.
    if writer is None or int(writer[1]) == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(int(writer[1]), 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return False
    except (OverflowError, PermissionError):
        return True
    return True


def _write_manifest(folder: Path) -> None:
    """Write the manifest with every file's size and SHA-256, and flush everything to disk."""
    entries: dict[str, FileEntry] = {}
    for path in _files(folder):
        # Contents first, then the directory that names them, and only then the rename.
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
    """Return the manifest's text; it includes a digest of its entries, so changes are detected."""
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
    # The text is reproducible byte by byte, so comparing it detects any edit, also of the digest.
    if text != _manifest_text(entries):
        raise StorageError(f"{path} was altered, or written by another version of this package")
    return entries


def _entry(entry: dict[str, object]) -> FileEntry:
    size, sha256, mtime_ns = entry["size"], entry["sha256"], entry["mtime_ns"]
    if not (isinstance(size, int) and isinstance(sha256, str) and isinstance(mtime_ns, int)):
        raise TypeError(f"a file's entry must be size, sha256, mtime_ns, got {entry!r}")
    return FileEntry(size=size, sha256=sha256, mtime_ns=mtime_ns)


def _inside(name: str, manifest: Path) -> str:
    """Return a file name from a manifest, or raise if it points outside the folder."""
    # A manifest is data from outside: `../x` must not make the check read another file.
    if not is_name_inside(name):
        raise StorageError(f"{manifest} names {name!r}, which is not a file inside its folder")
    return name


def _files(folder: Path) -> list[Path]:
    """Return all files in a folder and its subfolders, including links, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _fsync(path: Path) -> None:
    # Windows only flushes a file that is open for writing, so "rb" would not do.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _swap_into_place(staged: Path, target: Path) -> None:
    """Rename `staged` to `target`, which keeps its name at every moment if the system can swap."""
    if not target.exists():
        staged.rename(target)
        fsync_directory(target.parent)
        return
    # After the swap `staged` holds the old files, which can go.
    if _swap(staged, target):
        fsync_directory(target.parent)
        shutil.rmtree(staged, ignore_errors=True)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}{OLD}{PARTIAL}")
    # Without a swap the target has no name for a moment; restore_folder repairs a crash there.
    target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        aside.rename(target)
        raise
    fsync_directory(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Give a folder back its name if a process was killed while it replaced the folder.

    This can only happen where the system cannot swap two names.
    """
    if target.exists() or not target.parent.is_dir():
        return
    pattern = f".{glob.escape(target.name)}.*{OLD}{PARTIAL}"
    for aside in sorted(target.parent.glob(pattern)):
        if not _in_use(aside) and not target.exists():
            aside.rename(target)


def _swap(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False if this system cannot."""
    if os.name != "posix":
        return False
    # Python has no binding for either call, and os.replace refuses a folder that is not empty.
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        result = library.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        result = library.renamex_np(*paths, RENAME_SWAP)
    else:
        return False
    # File systems such as NFS or overlayfs may refuse the exchange; the caller then renames
    # twice.
    return int(result) == 0
