"""Checks for single settings, and the declaration of a config field that carries one.

A config field is declared once, with everything about it that other parts need to know:

    epochs: int = setting(1, "Passes over the prompts.", WholeNumber(at_least=1))

`dataclasses.fields` then gives its help text, its check and whatever else was declared
(`path=`, `may_change=`, `verl=`); the command line, the resume rule and the mapping to verl read it
from there. `check_fields` runs the checks of a whole config. Rules that join two fields stay in
the config's `__post_init__`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Real
from typing import Any, TypeGuard

from orbiter.train.errors import ConfigError

Check = Callable[[str, object], None]
"""Called with a setting's name and value; raises a `ConfigError` that states both."""


def is_finite_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is a number that can be compared and averaged.

    An int too large for a float is not one: nothing can be computed with it.
    """
    if not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """An int inside the limits; a bool or 2.0 is refused."""

    at_least: int | None = None
    at_most: int | None = None

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is such a number."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} must be a whole number, got {shown(value)}")
        if self.at_least is not None and value < self.at_least:
            raise ConfigError(f"{name} must be at least {self.at_least}, got {shown(value)}")
        if self.at_most is not None and value > self.at_most:
            raise ConfigError(f"{name} must be at most {self.at_most}, got {shown(value)}")

    def __str__(self) -> str:
        return _with_limits("a whole number", {"at least": self.at_least, "at most": self.at_most})


@dataclass(frozen=True, slots=True)
class Number:
    """A finite int or float inside the limits; a bool is refused."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is such a number."""
        if isinstance(value, bool) or not is_finite_number(value):
            raise ConfigError(f"{name} must be a finite number, got {shown(value)}")
        if self.above is not None and not value > self.above:
            raise ConfigError(f"{name} must be above {self.above:g}, got {shown(value)}")
        if self.below is not None and not value < self.below:
            raise ConfigError(f"{name} must be below {self.below:g}, got {shown(value)}")
        if self.at_least is not None and value < self.at_least:
            raise ConfigError(f"{name} must be at least {self.at_least:g}, got {shown(value)}")
        if self.at_most is not None and value > self.at_most:
            raise ConfigError(f"{name} must be at most {self.at_most:g}, got {shown(value)}")

    def __str__(self) -> str:
        limits = {"above": self.above, "at least": self.at_least}
        limits |= {"below": self.below, "at most": self.at_most}
        return _with_limits("a number", limits)


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few texts."""

    choices: tuple[str, ...]

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is one of the choices."""
        if not isinstance(value, str) or value not in self.choices:
            listed = ", ".join(repr(choice) for choice in self.choices)
            raise ConfigError(f"{name} must be one of {listed}, got {shown(value)}")

    def __str__(self) -> str:
        return "one of " + ", ".join(self.choices)


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or False; "no", 0 and 1 are refused."""

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is True or False."""
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, got {shown(value)}")

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class Text:
    """A text, which may be empty unless `what` says what it must name."""

    what: str = ""

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is such a text."""
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a text, got {shown(value)}")
        if self.what and not value.strip():
            raise ConfigError(f"{name} must name {self.what}, got an empty text")

    def __str__(self) -> str:
        return self.what or "a text"


@dataclass(frozen=True, slots=True)
class PathName:
    """A path, as a text or a `Path`."""

    what: str = "a file or folder"

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is a path."""
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ConfigError(f"{name} must name {self.what}, got {shown(value)}")

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class OrNone:
    """None, or what another check accepts."""

    check: Check

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is None or passes the other check."""
        if value is not None:
            self.check(name, value)

    def __str__(self) -> str:
        return f"{self.check}, or none"


class WordOrNumber:
    """One of some words, or a finite number."""

    def __init__(self, *words: str) -> None:
        """Accept these words."""
        self.words = words

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is one of the words or a finite number."""
        if not isinstance(value, str):
            Number()(name, value)
        elif value not in self.words:
            raise ConfigError(f"{name} must be {self}, got {shown(value)}")

    def __str__(self) -> str:
        return f"{', '.join(map(repr, self.words))} or a number"


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping from texts to values."""

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is such a mapping."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{name} must map names to values, got {shown(value)}")

    def __str__(self) -> str:
        return "a table of names and values"


def setting(
    default: Any,  # noqa: ANN401 - of the field's own type, which mypy checks at the field
    help: str,
    check: Check | None = None,
    **further: object,
) -> Any:  # noqa: ANN401 - as `dataclasses.field` does
    """Declare a config field with its help text, its check and what else others must know of it.

    A function as `default` is called for each new config, like `default_factory`.
    """
    metadata = described(help, check, **further)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def described(
    help: str,
    check: Check | None = None,
    **further: object,
) -> dict[str, Any]:
    """Return the metadata of a config field without a default: `field(metadata=described(...))`."""
    return {"help": help, "check": check, **further}


def setting_like(
    config: type,
    name: str,
    default: Any,  # noqa: ANN401 - as above
    help: str,
) -> Any:  # noqa: ANN401 - as above
    """Declare a field of a base config again, with another default and help text."""
    inherited: Field[Any] = config.__dataclass_fields__[name]  # type: ignore[attr-defined] # a dataclass
    return setting(default, **{**inherited.metadata, "help": help})


def check_fields(config: Any) -> None:  # noqa: ANN401 - any dataclass
    """Run the check of every field of a config, in the order of declaration.

    Raises:
        ConfigError: names the first field whose value is refused, and the value.
    """
    for declared in fields(config):
        check = declared.metadata.get("check")
        if check is not None:
            check(declared.name, getattr(config, declared.name))


def _with_limits(kind: str, limits: Mapping[str, float | None]) -> str:
    """Describe a number and its limits: "a number, above 0 and at most 1"."""
    words = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
    return ", ".join([kind, " and ".join(words)]) if words else kind


def shown(value: object, length: int = 80) -> str:
    """Return a value as an error shows it: its repr, shortened, or its type if that fails."""
    try:
        text = repr(value)
    except Exception:  # a value's own repr may fail, or be an int too long to be written
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= length else f"{text[:length]}..."
