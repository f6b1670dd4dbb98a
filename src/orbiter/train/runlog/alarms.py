"""What a reader of a run must not miss, in its folder: alarms in alarms.json, notes in notes.json.

An alarm is {"step", "kind", "message", "samples"}, a note a sentence about the run as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orbiter.train.errors import StorageError
from orbiter.train.storage import write_file

ALARMS_FILE, NOTES_FILE = "alarms.json", "notes.json"
ALARM_KEYS = ("step", "kind", "message", "samples")


def keep_alarms(folder: str | os.PathLike[str], alarms: Sequence[Mapping[str, Any]]) -> None:
    """Write the alarms of a run, all of them."""
    _write(Path(folder) / ALARMS_FILE, alarms)


def keep_notes(folder: str | os.PathLike[str], notes: Sequence[str]) -> None:
    """Write the notes of a run, all of them."""
    _write(Path(folder) / NOTES_FILE, notes)


def read_alarms(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the alarms of a run, in order.

    Raises:
        StorageError: the file is damaged.
    """
    path = Path(folder) / ALARMS_FILE
    try:
        return [{name: alarm[name] for name in ALARM_KEYS} for alarm in _read(path)]
    except (TypeError, KeyError) as error:
        raise StorageError(f"{path} does not hold the alarms of a run: {error}") from error


def read_notes(folder: str | os.PathLike[str]) -> list[str]:
    """Return the notes of a run.

    Raises:
        StorageError: the file is damaged.
    """
    return [str(note) for note in _read(Path(folder) / NOTES_FILE)]


def _write(path: Path, content: object) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_file(path, text.encode("utf-8", "replace"))


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}") from error
    if not isinstance(content, list):
        raise StorageError(f"{path} is damaged: it must hold a list, got {type(content).__name__}")
    return content
