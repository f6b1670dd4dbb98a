"""Which settings are paths, and how they move from a file's folder to a run's and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Change = Callable[[str], str]

_PATHS = {
    *(("data", "train"), ("data", "eval"), ("train", "output_dir"), ("sft", "output_dir")),
    *(("evolve", "run_dir"), ("synth", "out"), ("synth", "seeds"), ("llm", "cache")),
}
_CODE = {("evolve", "strategy"), ("synth", "step"), ("train", "trackers"), ("sft", "trackers")}
_MODELS = {("train", "model"), ("sft", "model"), ("llm", "model")}


def map_paths(values: dict[str, Any], change: Change) -> None:
    """Change every path among the values, in place: files, code in files, models in folders."""
    for section, told in values.items():
        if section == "reward":
            values[section] = _map_reward(told, change)
            continue
        for name, value in told.items():
            if isinstance(value, list) and (section, name) in _CODE:
                told[name] = [_map_code(each, change) for each in value]
            elif not isinstance(value, str) or value in ("none", "None"):
                continue
            elif (section, name) in _PATHS:
                told[name] = change(value)
            elif (section, name) in _CODE:
                told[name] = _map_code(value, change)
            elif (section, name) in _MODELS and (
                value[0:1] in ("/", ".", "~") or _is_dir(change, value)
            ):
                told[name] = change(value)


def _is_dir(change: Change, value: str) -> bool:
    return Path(change(value)).is_dir()


def _map_reward(told: object, change: Change) -> object:
    if isinstance(told, Mapping):
        return {name: _map_reward(inner, change) for name, inner in told.items()}
    return _map_code(told, change)


def _map_code(value: object, change: Change) -> object:
    file, colon, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return f"{change(file)}:{name}" if colon and file.endswith(".py") else value


def absolute(path: str, base: Path) -> str:
    """Return a path seen from `base` as one that holds everywhere."""
    return str((base / Path(path).expanduser()).resolve())


def relative(path: str, folder: Path) -> str:
    """Return an absolute path as it is seen from a folder."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix() if Path(path).is_absolute() else path
    except ValueError:  # another drive of Windows
        return path
