"""Load the user's Python functions, named by "file.py:name", from exactly that file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from orbiter.train.callback import USER_MODULE
from orbiter.train.errors import ConfigError, boundary, did_you_mean

if TYPE_CHECKING:
    from orbiter.train.cli.settings.config_file import Settings
    from orbiter.train.verl import RewardSpec


def load_object(spec: str, *, what: str) -> Any:  # noqa: ANN401 - whatever the user wrote
    """Return the object named by "file.py:name" or "package.module:name".

    The file's folder becomes importable, and the one around its package, if it is in one.

    Raises:
        ConfigError: the file, module or name does not exist.
        CallbackError: the file raised while it was loaded.
    """
    # From the right: a Windows path has a colon too.
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise ConfigError(f'{what} must look like "rewards.py:name", got {spec!r}')
    module = _from_file(Path(source), what) if source.endswith(".py") else _by_name(source, what)
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{what}: {source} has no {name!r}{did_you_mean(name, public)}")
    return getattr(module, name)


def _from_file(file: Path, what: str) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"{what}: there is no file {file}")
    # Not the plain stem, or a file named json.py would replace the standard module.
    root, name = _module_of(file)
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(file):
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None, "as above"
    module = importlib.util.module_from_spec(spec)
    for folder in (root, file.parent):
        if str(folder) not in sys.path:
            # The user's file may import what is beside it, or beside its package.
            sys.path.insert(0, str(folder))
    sys.modules[name] = module  # before it runs, as in a normal import: dataclasses look it up
    try:
        with boundary(f"{what}: reading {file.name}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half of it is loaded
        raise
    return module


def _module_of(file: Path) -> tuple[Path, str]:
    """Return the folder to import a file from, and its module name.

    A file inside a package gets its full name, so that its relative imports work. Any other file
    has a name that cannot hide an installed module.
    """
    root, parts = file.resolve().parent, [file.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    loaded = sys.modules.get(parts[0])
    # A package of this name from another folder would answer the relative imports.
    foreign = loaded is not None and root / parts[0] not in map(
        Path, getattr(loaded, "__path__", [])
    )
    if len(parts) == 1 or foreign or not all(part.isidentifier() for part in parts):
        return file.parent, f"{USER_MODULE}{file.stem}"
    return root, ".".join(parts)


def _by_name(module: str, what: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what}: there is no module {module!r} ({error})") from error


def load_rewards(setting: object, settings: Settings | None = None) -> list[RewardSpec]:
    """Return the rewards of a config: one "file.py:name", or a table with one entry per reward.

    An entry with `judge = "rubric"` asks the model of [llm] in `settings`. One with `gold = true`
    is left out; see `load_gold`.

    Raises:
        ConfigError: it has another form, or names something that does not exist.
    """
    from orbiter.train.verl import RewardSpec

    if isinstance(setting, str):
        name = setting.rpartition(":")[2]
        return [RewardSpec(name, fn=load_object(setting, what="reward"))]
    if not isinstance(setting, Mapping) or not setting:
        raise ConfigError(
            'there is no reward: set reward = "rewards.py:name", or a [reward] table with '
            'name = "rewards.py:name" for each'
        )
    return [_reward(name, each, settings) for name, each in setting.items() if not _is_gold(each)]


def load_gold(setting: object, settings: Settings | None = None) -> RewardSpec | None:
    """Return the reward with `gold = true`, which is measured and not trained by.

    Raises:
        ConfigError: there is more than one.
    """
    entries = setting.items() if isinstance(setting, Mapping) else ()
    golds = [(name, each) for name, each in entries if _is_gold(each)]
    if len(golds) > 1:
        raise ConfigError(f"[reward] only one may be gold, got {[name for name, _ in golds]}")
    return _reward(*golds[0], settings) if golds else None


def _is_gold(entry: object) -> bool:
    gold = entry.get("gold", False) if isinstance(entry, Mapping) else False
    if not isinstance(gold, bool):
        raise ConfigError(f"gold of a reward must be true or false, got {gold!r}")
    return gold


KINDS = (
    ("fn",),
    ("model",),
    ("judge", "compare", "votes", "max_calls", "max_cost", "labels"),
)
"""The settings of each kind of reward; the first one tells the kind."""


def _reward(name: str, setting: object, settings: Settings | None) -> RewardSpec:
    from orbiter.train.verl import RewardSpec

    entry: dict[str, Any] = dict(setting) if isinstance(setting, Mapping) else {"fn": setting}
    own = next((kind for kind in KINDS if kind[0] in entry), KINDS[0])
    known = (*own, "weight", "gold")
    unknown = [key for key in entry if key not in known]
    if unknown or not isinstance(entry.get(own[0]), str):
        raise ConfigError(
            f'[reward] {name} must be "rewards.py:name", {{fn = "rewards.py:name", weight = 1.0}}, '
            f'{{model = "folder of a reward model"}} or {{judge = "rubric"}}, got {setting!r}'
            + (
                did_you_mean(unknown[0], {*known, *(key for kind in KINDS for key in kind)})
                if unknown
                else ""
            )
        )
    weight = entry.get("weight", 1.0)
    if "fn" in entry:
        return RewardSpec(name, weight, load_object(entry["fn"], what=f"reward {name!r}"))
    if "model" in entry:
        from orbiter.train.preference import RewardModel

        return RewardSpec(name, weight, RewardModel(entry["model"]))
    if settings is None:
        raise ConfigError(f"[reward] {name} is a judge, and this command takes functions only")
    from orbiter.train.cli.judges import make_judge

    return RewardSpec(name, weight, make_judge(name, entry, settings))
