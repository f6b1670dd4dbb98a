"""Make the paths among the settings absolute or relative; fields declare them with `path=`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orbiter.train.cli.settings.catalogue import settings_of_section

Change = Callable[[str], str]


def map_paths(values: dict[str, Any], change: Change) -> None:
    """Change every path among the values, in place: files, code in files, models in folders."""
    for section, given in values.items():
        if section == "reward":
            values[section] = _map_reward(given, change)
            continue
        known = settings_of_section(section)
        for name, value in given.items():
            kind = known[name].path if name in known else None
            if kind == "code" and isinstance(value, list):
                given[name] = [_map_code(each, change) for each in value]
            elif not isinstance(value, str) or value in ("none", "None"):
                continue
            elif kind == "file":
                given[name] = change(value)
            elif kind == "code":
                given[name] = _map_code(value, change)
            # A name such as "org/model" is a hub's unless there is a folder of that name.
            elif kind == "model" and (value[0:1] in ("/", ".", "~") or _is_dir(change, value)):
                given[name] = change(value)


def _is_dir(change: Change, value: str) -> bool:
    return Path(change(value)).is_dir()


def _map_reward(given: object, change: Change) -> object:
    """Map "file.py:name" of each reward, files and folders; a rubric is left as it is."""
    if isinstance(given, Mapping):
        return {name: _map_entry(entry, change) for name, entry in given.items()}
    return _map_code(given, change)


def _map_entry(entry: object, change: Change) -> object:
    if not isinstance(entry, Mapping):
        return _map_code(entry, change)
    # A rubric may end in something that looks like "file.py:name".
    mapped = {key: _map_code(value, change) for key, value in entry.items() if key != "judge"}
    if isinstance(labels := entry.get("labels"), str):
        mapped["labels"] = change(labels)
    if isinstance(model := entry.get("model"), str) and _is_dir(change, model):
        mapped["model"] = change(model)
    return {**entry, **mapped}


def _map_code(value: object, change: Change) -> object:
    if not isinstance(value, str):
        return value
    place, colon, name = value.rpartition(":")
    if colon and place.endswith(".py"):
        return f"{change(place)}:{name}"
    if colon and name.isidentifier() and all(part.isidentifier() for part in place.split(".")):
        # A module of the user's folder is written like an installed one: "package.module:name".
        module = change(f"{place.replace('.', '/')}.py")
        return f"{module}:{name}" if Path(module).is_file() else value
    return value


def absolute(path: str, base: Path) -> str:
    """Return a path relative to `base` as an absolute one."""
    return str((base / Path(path).expanduser()).resolve())


def relative(path: str, folder: Path) -> str:
    """Return an absolute path relative to a folder."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix() if Path(path).is_absolute() else path
    except ValueError:  # on another Windows drive
        return path
