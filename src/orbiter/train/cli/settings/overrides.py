"""Parse settings on the command line, such as `train.learning_rate=1e-6`, with TOML values."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import NamedTuple

from orbiter.train.errors import ConfigError


class Override(NamedTuple):
    """One setting of the command line."""

    path: tuple[str, ...]
    """Section, name, and any deeper keys."""
    value: object

    def __str__(self) -> str:
        return ".".join(self.path)


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Parse `section.name=value` words; a value that is not valid TOML is a string.

    Raises:
        ConfigError: a word has another form.
    """
    return [_parse(word) for word in words]


def _parse(word: str) -> Override:
    name, equals, text = word.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        raise ConfigError(f"a setting looks like train.learning_rate=1e-6, got {word!r}")
    return Override(path, _value(text.strip()))


def _value(text: str) -> object:
    # As Python spells them, which TOML does not know.
    if text in ("True", "False"):
        return text == "True"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def apply(values: dict[str, object], override: Override) -> None:
    """Set one value, replacing an existing one.

    Raises:
        ConfigError: a key on the path is a value, not a section.
    """
    *way, last = override.path
    table = values
    for part in way:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override} cannot be set: {part} is {inner!r}, not a section")
        table = inner
    table[last] = override.value
