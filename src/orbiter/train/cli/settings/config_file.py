"""Read settings from a TOML or YAML file with a section per command; every name is checked.

The command line overrides the file, and the file overrides the defaults. A path in the file is
relative to the file, one on the command line to the current folder. The config classes check the
values; `build` adds the location of a wrong one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from orbiter.train.checks import shown
from orbiter.train.cli.settings.catalogue import CONFIGS, OWN, SECTIONS, settings_of_section
from orbiter.train.cli.settings.overrides import Override, apply
from orbiter.train.cli.settings.paths import absolute, map_paths, relative
from orbiter.train.cli.settings.toml import dump
from orbiter.train.errors import ConfigError, StorageError, did_you_mean, require
from orbiter.train.storage import write_file

C = TypeVar("C")

Section = dict[str, object]

RUN_CONFIG = "config.toml"
"""File in a run's folder with the settings it was made with."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a file and a command line together, with absolute paths."""

    values: dict[str, Any]
    """By section, then by name; `reward` may be a string."""
    file: Path | None = None
    text: str = ""
    """The file's content, used to find the line number for an error."""
    overridden: frozenset[str] = frozenset()
    """`section.name` of each setting given on the command line."""

    def section(self, name: str) -> Section:
        """Return the given settings of a section; empty if it is absent."""
        return dict(self.values.get(name, {}))

    def own(self, section: str) -> Section:
        """Return the given settings of a section that belong to the command line itself.

        Raises:
            ConfigError: a value is wrong; names the file, the line and the setting.
        """
        values = self._of(section, own=True)
        try:
            OWN[section](**values)
        except ConfigError as error:
            raise self._at(section, error) from error
        return values

    def build(self, section: str, kind: Callable[..., C], **fixed: object) -> C:
        """Make the config that a section describes; `fixed` overrides it.

        Raises:
            ConfigError: a value is wrong; names the file, the line and the setting.
        """
        values = self._of(section, own=False) | fixed
        try:
            return kind(**values)
        except (ConfigError, TypeError) as error:
            raise self._at(section, error) from error

    def _of(self, section: str, *, own: bool) -> Section:
        known = settings_of_section(section)
        return {
            # TOML has no null.
            name: None if value in ("none", "None") and known[name].may_be_none else value
            for name, value in self.section(section).items()
            if name in known and known[name].own == own
        }

    def _at(self, section: str, error: Exception) -> ConfigError:
        """Prefix an error with the location of the setting that its message begins with."""
        # All checks begin their messages with the setting's name.
        name = re.match(r"\w+", str(error))
        return ConfigError(f"{self.where(section, name[0] if name else '')}{error}")

    def where(self, section: str, name: str) -> str:
        """Return where a setting was given, as the beginning of an error message."""
        if f"{section}.{name}" in self.overridden:
            return f"command line, {section}.{name}: "
        line = _line_of(self.text, section, name)
        if self.file is None or line is None:
            return f"[{section}] "
        return f"{self.file.name}:{line}: [{section}] "


def load(file: Path | None, overrides: Sequence[Override] = ()) -> Settings:
    """Read a file, apply the command line to it, and check every name.

    Raises:
        ConfigError: the file is not valid TOML (or YAML), or a section or a setting is unknown.
        StorageError: the file cannot be read.
    """
    text = "" if file is None else _read(file)
    values = {} if file is None else _parse(file, text)
    base = Path.cwd() if file is None else file.resolve().parent
    own = frozenset(str(override) for override in overrides)
    settings = Settings({}, file, text, own)
    _check(settings, values)
    # Before the overrides are applied: their paths are relative to another folder.
    map_paths(values, lambda path: absolute(path, base))
    for override in overrides:
        single: dict[str, Any] = {}
        apply(single, override)
        _check(settings, single)
        map_paths(single, lambda path: absolute(path, Path.cwd()))
        # The value as it is after the mapping of paths.
        value: object = single
        for part in override.path:
            value = cast("dict[str, object]", value)[part]
        _widen_reward(values, override)
        apply(values, override._replace(value=value))
    settings.values.update(values)
    return settings


def _widen_reward(values: dict[str, Any], override: Override) -> None:
    """Let `reward.NAME.weight=0.5` override a reward that the file gives as a plain string."""
    if override.path[0] == "reward" and len(override.path) == 3:
        rewards, name = values.get("reward"), override.path[1]
        if isinstance(rewards, dict) and isinstance(rewards.get(name), str):
            rewards[name] = {"fn": rewards[name]}


def write_run_config(folder: Path, values: Mapping[str, object]) -> Path:
    """Write a run's settings into its folder, without secrets and with relative paths."""
    from orbiter.train.redact import secrets_of_the_environment
    from orbiter.train.runlog.plain import plain

    written = plain(values, "config", secrets_of_the_environment())
    there = folder.resolve()
    # Relative, so that a run's folder can be moved together with its data.
    map_paths(written, lambda path: relative(path, there))
    target = folder / RUN_CONFIG
    write_file(target, dump(written).encode())
    return target


def all_settings(config: object, section: str) -> Section:
    """Return every setting of a config in file form: "none" for a value that is None."""
    written: Section = {}
    for name, setting in settings_of_section(section).items():
        if setting.own:
            continue
        value = getattr(config, name)
        if value is not None:
            written[name] = value
        # "none" only where leaving it out would mean another value.
        elif setting.default is not None:
            written[name] = "none"
    return written


def _read(file: Path) -> str:
    try:
        # Editors on Windows may write a byte order mark.
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from error


def _parse(file: Path, text: str) -> dict[str, Any]:
    if file.suffix in (".yaml", ".yml"):
        yaml = require("yaml", extra="yaml")
        try:
            values = yaml.load(text, _loader(yaml)) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{file} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{file} must hold sections such as train:, got {values!r:.60}")
        return values
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _loader(yaml: Any) -> Any:  # noqa: ANN401 - an optional dependency
    """Return a safe loader that reads 1e-5 as the number that it is in YAML 1.2 and in TOML."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # as above
        """Has separate resolvers, so that other users of PyYAML see no change."""

    number = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def _check(settings: Settings, values: Mapping[str, object]) -> None:
    """Reject sections and settings that no command reads."""
    for section, given in values.items():
        if section not in SECTIONS:
            hint = did_you_mean(section, SECTIONS)
            # A common slip: the name of a setting without its section.
            home = next((s for s in CONFIGS if section in settings_of_section(s)), None)
            if not hint and home:
                hint = f"; did you mean {home}.{section}?"
            where = settings.where(section, "").removeprefix(f"[{section}] ")
            raise ConfigError(
                f"{where}there is no section {section!r}{hint}"
                + ("" if hint else f"; sections: {', '.join(SECTIONS)}")
            )
        if section == "reward":
            continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"{section} is a section, and cannot be {shown(given)}")
        known = settings_of_section(section)
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"{settings.where(section, name)}there is no setting {name!r}"
                    f"{did_you_mean(name, known)}"
                )


def _line_of(text: str, section: str, name: str) -> int | None:
    """Return the 1-based line of a setting, or of the section's header if `name` is empty."""
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
