"""Settings on the command line: `train.learning_rate=1e-6`, read as TOML would read them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import NamedTuple

from orbiter.train.errors import ConfigError


class Override(NamedTuple):
    """One setting of the command line."""

    path: tuple[str, ...]
    """Its section and name, and whatever stands deeper."""
    value: object

    def __str__(self) -> str:
        return ".".join(self.path)


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Read `section.name=value` words; a value that is no TOML is a text.

    Raises:
        ConfigError: a word has another shape.
    """
    return [_parse(word) for word in words]


def _parse(word: str) -> Override:
    name, equals, text = word.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        raise ConfigError(f"a setting looks like train.learning_rate=1e-6, got {word!r}")
    return Override(path, _value(text.strip()))


def _value(text: str) -> object:
    if text in ("True", "False"):
        return text == "True"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def apply(values: dict[str, object], override: Override) -> None:
    """Put one setting in its place; what stands there is replaced.

    Raises:
        ConfigError: something on the way there is a value, and no section.
    """
    *way, last = override.path
    place = values
    for part in way:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override} cannot be set: {part} is {inner!r}, and no section")
        place = inner
    place[last] = override.value
