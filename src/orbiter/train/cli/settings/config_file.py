"""One file that says what to do: TOML or YAML, a section a command, checked to the last name.

Precedence: defaults, then the file, then the command line. A path in the file is relative to the
file, one on the command line to where you are. Left out: what a setting may be; the config classes
check that, and `build` says where the wrong one stands.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from orbiter.train.cli.settings.overrides import Override, apply
from orbiter.train.cli.settings.paths import absolute, map_paths, relative
from orbiter.train.cli.settings.toml import dump
from orbiter.train.errors import ConfigError, StorageError, did_you_mean, require
from orbiter.train.storage import atomic_write

C = TypeVar("C")

Section = dict[str, object]

RUN_CONFIG = "config.toml"
"""What a run's folder calls the settings that it was made with."""


def _fields_of(module: str, name: str, *without: str) -> Callable[[], dict[str, str]]:
    """Return what gives the settings of a config class, each with its type in words."""

    def names() -> dict[str, str]:
        from importlib import import_module

        config: Any = getattr(import_module(f"orbiter.train.{module}"), name)
        return {f.name: str(f.type) for f in fields(config) if f.name not in without}

    return names


_OWN: dict[str, dict[str, str]] = {
    "data": {"train": "str", "eval": "str | None", "format": "str | None"},
    "eval": {"samples": "int", "success": "float"},
    "evolve": {"strategy": "str | None", "prompts": "list"},
    "synth": {
        "out": "str",
        "seeds": "str | None",
        "templates": "list",
        "variables": "table",
        "teacher": "list",
        "step": "str | None",
    },
    "llm": {
        "temperature": "float",
        "max_tokens": "int",
        "cache": "str | None",
        "price": "table",
    },
}
"""Settings that belong to the command line alone, by section."""

_CLASSES: dict[str, Callable[[], dict[str, str]]] = {
    "train": _fields_of("verl.config", "VeRLConfig"),
    "sft": _fields_of("sft.config", "SFTConfig"),
    "evolve": _fields_of("evolution.config", "EvolutionConfig", "on_event"),
    "synth": _fields_of("synthesis.pipeline.config", "SynthesisConfig"),
    "llm": _fields_of("llm.config", "ClientConfig", "parameters", "price", "budget"),
}
"""Settings that are the fields of a config class, by section."""

SECTIONS = ("data", "reward", *dict.fromkeys([*_CLASSES, *_OWN]))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a file and a command line say together, paths made absolute."""

    values: dict[str, Any]
    """By section, then by name; `reward` may be a text."""
    file: Path | None = None
    text: str = ""
    """The file's content, for the line that an error names."""
    overridden: frozenset[str] = frozenset()
    """`section.name` of what came from the command line."""

    def section(self, name: str) -> Section:
        """Return what is set in a section; nothing where it is not there."""
        return dict(self.values.get(name, {}))

    def own(self, section: str) -> Section:
        """Return those settings of a section that belong to the command line alone."""
        known = _OWN[section]
        return {k: _none(v, known[k]) for k, v in self.section(section).items() if k in known}

    def build(self, section: str, kind: Callable[..., C], **fixed: object) -> C:
        """Make the config that a section describes; `fixed` stands above it.

        Raises:
            ConfigError: a setting cannot be; names the file, the line and the setting.
        """
        known = _CLASSES[section]()
        found = {k: _none(v, known[k]) for k, v in self.section(section).items() if k in known}
        try:
            return kind(**(found | fixed))
        except (ConfigError, TypeError) as error:
            name = re.match(r"\w+", str(error))
            where = self.where(section, name[0] if name else "")
            raise ConfigError(f"{where}{error}") from error

    def where(self, section: str, name: str) -> str:
        """Say where a setting was made, as the beginning of a sentence."""
        if f"{section}.{name}" in self.overridden:
            return f"command line, {section}.{name}: "
        line = _line_of(self.text, section, name)
        if self.file is None or line is None:
            return f"[{section}] "
        return f"{self.file.name}:{line}: [{section}] "


def load(file: Path | None, overrides: Sequence[Override] = ()) -> Settings:
    """Read a file, put the command line above it, and check every name.

    Raises:
        ConfigError: the file is no TOML (or YAML), or a section or a setting is unknown.
        StorageError: it cannot be read.
    """
    text = "" if file is None else _read(file)
    values = {} if file is None else _parse(file, text)
    base = Path.cwd() if file is None else file.resolve().parent
    own = frozenset(str(override) for override in overrides)
    settings = Settings({}, file, text, own)
    _check(settings, values)
    map_paths(values, lambda path: absolute(path, base))
    for override in overrides:
        single: dict[str, Any] = {}
        apply(single, override)
        _check(settings, single)
        map_paths(single, lambda path: absolute(path, Path.cwd()))
        value: object = single
        for part in override.path:
            value = cast("dict[str, object]", value)[part]
        _widen_reward(values, override)
        apply(values, override._replace(value=value))
    settings.values.update(values)
    return settings


def _widen_reward(values: dict[str, Any], override: Override) -> None:
    """Let `reward.NAME.weight=0.5` stand above a reward that the file gives as a mere text."""
    if override.path[0] == "reward" and len(override.path) == 3:
        told, name = values.get("reward"), override.path[1]
        if isinstance(told, dict) and isinstance(told.get(name), str):
            told[name] = {"fn": told[name]}


def write_run_config(folder: Path, values: Mapping[str, object]) -> Path:
    """Write a run's settings into its folder, secrets left out and paths relative to it."""
    from orbiter.train.runlog.plain import plain, secrets_of_the_environment

    told = plain(values, "config", secrets_of_the_environment())
    there = folder.resolve()
    map_paths(told, lambda path: relative(path, there))
    target = folder / RUN_CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        file.write(dump(told).encode())
    return target


def all_settings(config: object, section: str) -> Section:
    """Return every setting of a config as a file can say it: "none" where there is no value."""
    told: Section = {}
    for name in _CLASSES[section]():
        value = getattr(config, name)
        if value is not None:
            told[name] = value
        elif type(config).__dataclass_fields__[name].default is not None:  # type: ignore[attr-defined] # every config is a dataclass
            told[name] = "none"
    return told


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from error


def _parse(file: Path, text: str) -> dict[str, Any]:
    if file.suffix in (".yaml", ".yml"):
        yaml = require("yaml", extra="yaml")
        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{file} is no YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{file} must hold sections such as train:, got {values!r:.60}")
        return {section: _numbers(section, told) for section, told in values.items()}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error


def _numbers(section: str, told: object) -> object:
    """Read 1e-5, which YAML 1.1 takes for a text, as the number that it is."""
    if not isinstance(told, dict) or section not in SECTIONS:
        return told
    known, read = _names(section), dict(told)
    for name in known:
        value = read.get(name)
        if isinstance(value, str) and "float" in known[name]:
            try:
                read[name] = float(value)
            except ValueError:
                continue
    return read


def _names(section: str) -> dict[str, str]:
    """Return all settings of a section, each with its type in words."""
    return {**_OWN.get(section, {}), **(_CLASSES[section]() if section in _CLASSES else {})}


def _check(settings: Settings, values: Mapping[str, object]) -> None:
    """Refuse what no command would read."""
    for section, told in values.items():
        if section not in SECTIONS:
            hint = did_you_mean(section, SECTIONS)
            home = next((s for s in _CLASSES if section in _names(s)), None)
            if not hint and home:
                hint = f"; did you mean {home}.{section}?"
            where = settings.where(section, "").removeprefix(f"[{section}] ")
            raise ConfigError(
                f"{where}there is no section {section!r}{hint}"
                + ("" if hint else f"; sections: {', '.join(SECTIONS)}")
            )
        if section == "reward":
            continue
        if not isinstance(told, Mapping):
            raise ConfigError(f"{section} is a section, and cannot be {told!r}")
        known = _names(section)
        for name in told:
            if name not in known:
                raise ConfigError(
                    f"{settings.where(section, name)}there is no setting {name!r}"
                    f"{did_you_mean(name, known)}"
                )


def _none(value: object, kind: str) -> object:
    return None if value in ("none", "None") and "None" in kind else value


def _line_of(text: str, section: str, name: str) -> int | None:
    """Find the line of a setting, or of a section's head where `name` is empty; 1 is the first."""
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        head = re.match(r"\s*\[+\s*([\w-]+)|([\w-]+):\s*(?:#|$)", line)
        if head:
            inside = head[1] or head[2]
        if not name and re.match(rf"\s*\[*\s*{re.escape(section)}\b\s*[\].=:]", line):
            return number
        if (
            name
            and inside == section
            and re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[=:]", line)
        ):
            return number
    return None
