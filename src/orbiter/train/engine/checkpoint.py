"""Write a run's checkpoints, each completely or not at all, and find the newest one again.

A checkpoint is a folder `step-00000012` with one safetensors file per group of tensors, a
`state.json`, and a manifest with the size and SHA-256 of each file. Nothing in it can run code.
What the groups mean (weights, optimiser, random state, the current samples) is defined in
`session.py`.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orbiter.train.disk import disk_errors
from orbiter.train.engine.models.folder import staged_folder, sweep_partials, verify_folder
from orbiter.train.errors import DataError, StorageError, TrainingError

log = logging.getLogger(__name__)

STATE = "state.json"
GROUP = re.compile(r"[a-z][a-z0-9_-]*")
FOLDER = re.compile(r"step-(\d{8,})")


class Checkpoint(NamedTuple):
    """Everything a run needs to continue as if it had not been interrupted."""

    step: int
    path: Path
    tensors: dict[str, dict[str, Tensor]]
    """By group, then by name; on the CPU."""
    state: dict[str, Any]
    """The saved JSON: numbers, strings, lists and dicts; floats are exact."""


class Checkpoints:
    """The checkpoints in one folder, written by one process at a time."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Manage `folder`, which need not exist yet; unfinished checkpoints are removed.

        Args:
            folder: A folder that holds nothing but checkpoints.
            keep: Number of newest checkpoints to keep. With 2, one is left if the other is damaged.
        """
        self.folder = folder
        self.keep = keep
        self.skipped: list[str] = []
        """Why each folder that `latest` skipped could not be used."""
        with disk_errors(folder):
            for stale in sweep_partials(folder):
                log.info("removed %s, which was never finished", stale.name)

    def save(
        self,
        step: int,
        *,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, object],
    ) -> Path:
        """Write a checkpoint; once this returns, it survives a power loss.

        Raises:
            TrainingError: a tensor holds NaN or an infinity, so there is no point in resuming.
            DataError: `state` is not valid JSON.
            StorageError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        # Checked before any file is created, so a diverged run leaves no unfinished folder.
        for group, named in tensors.items():
            _check_group(group, named)
        text = _encode_state(state)
        target = self.folder / f"step-{step:08d}"
        # Shared tensors count twice here, as `_write_group` writes them twice.
        needed = sum(t.numel() * t.element_size() for g in tensors.values() for t in g.values())
        # The folder gets its name only after every file and the manifest are on disk.
        with staged_folder(target, needed=needed) as staged:
            for group, named in tensors.items():
                _write_group(staged / f"{group}.safetensors", named)
            (staged / STATE).write_text(text, encoding="utf-8")
        with disk_errors(self.folder):
            self._drop_old(step)
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None; damaged ones are logged and skipped."""
        self.skipped = []
        for step in sorted(self.steps(), reverse=True):
            try:
                return self.read(step)
            except StorageError as error:
                self.skipped.append(str(error))
                log.warning("checkpoint step-%08d cannot be used: %s", step, error)
        return None

    def read(self, step: int) -> Checkpoint:
        """Read the checkpoint of one step.

        Raises:
            StorageError: it does not exist, or its files differ from what was written.
        """
        path = self.folder / f"step-{step:08d}"
        if path.is_symlink() or not path.is_dir():
            raise StorageError(f"there is no checkpoint {path}")
        verify_folder(path)
        try:
            tensors = {file.stem: _read_group(file) for file in sorted(path.glob("*.safetensors"))}
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise StorageError(f"{path} cannot be read: {error}") from error
        return Checkpoint(step, path, tensors, state)

    def steps(self) -> list[int]:
        """Return the steps that have a folder, in order, whether complete or damaged."""
        if not self.folder.is_dir():
            return []
        names = (FOLDER.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _drop_old(self, newest: int) -> None:
        """Remove all but the newest `keep` checkpoints, counting back from the one just written."""
        # Later ones stay: they belong to a run that was resumed from an earlier checkpoint.
        # Removed only after the new one is complete, so at every moment one good checkpoint
        # exists.
        for step in [step for step in self.steps() if step <= newest][: -self.keep]:
            shutil.rmtree(self.folder / f"step-{step:08d}", ignore_errors=True)


def _check_group(group: str, named: Mapping[str, Tensor]) -> None:
    if not GROUP.fullmatch(group):
        raise DataError(f"a group of tensors must be named like 'weights', got {group!r}")
    for name, tensor in named.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"{group}/{name} is no longer finite: no checkpoint was written")


def _encode_state(state: Mapping[str, object]) -> str:
    try:
        # JSON has no NaN; Python would write one that other readers refuse.
        return json.dumps(state, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"the state of a checkpoint must be JSON: {error}") from error


def _write_group(path: Path, named: Mapping[str, Tensor]) -> None:
    """Write a group to a file; tensors that share memory are each written in full."""
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    seen: set[int] = set()
    for name, tensor in owned.items():
        # safetensors refuses tensors that share memory, such as tied embeddings.
        address = tensor.untyped_storage().data_ptr()
        if address in seen:
            owned[name] = tensor.clone()
        seen.add(address)
    save_file(owned, path)


def _read_group(path: Path) -> dict[str, Tensor]:
    """Read a group into separate memory, since its file may be removed while it is in use."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}
