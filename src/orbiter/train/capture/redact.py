"""Remove secrets from captured data before any of it is stored.

Headers are not captured. They are used for one purpose: the key that a request is sent with is
removed from its texts if it appears there. `redact=` adds patterns, or a function from text to
text. If something was removed from an item, its token ids go too, because they spell the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from orbiter.train.chat.message import Json
from orbiter.train.chat.reply import Fields
from orbiter.train.errors import CallbackError, ConfigError, boundary
from orbiter.train.redact import SHORTEST, is_secret_name

Redact = Callable[[str], str] | Iterable[str | re.Pattern[str]] | None
"""A function from text to text, regular expressions, or None."""

REPLACED = "[redacted]"
_STRUCTURE = frozenset(("role", "type", "id", "tool_call_id"))
"""Fields that structure a conversation and hold no free text."""
_KEY_HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"))


class Cleaned(NamedTuple):
    """A value with its secrets removed."""

    value: Json
    changed: bool


Cleaner = Callable[[Json], Cleaned]
"""Removes the secrets from any JSON value."""


class Redactor:
    """Removes secrets from texts: by the user's rule, and the keys of single requests."""

    def __init__(self, redact: Redact = None) -> None:
        """Compile the user's rule.

        Raises:
            ConfigError: the rule is neither a function nor regular expressions.
        """
        self._function = redact if callable(redact) else None
        self._patterns = [] if callable(redact) else _compiled(redact)

    def cleaner(self, secrets: Iterable[str]) -> Cleaner | None:
        """Return a cleaner that also removes these secrets; None if there is nothing to remove."""
        patterns = self._patterns + [re.compile(re.escape(secret)) for secret in secrets]
        if not patterns and self._function is None:
            return None
        return lambda value: self._clean(value, patterns)

    def _clean(self, value: Json, patterns: list[re.Pattern[str]]) -> Cleaned:
        changed = False

        def walk(inner: Json) -> Json:
            nonlocal changed
            if isinstance(inner, str):
                cleaned = self._text(inner, patterns)
                changed = changed or cleaned != inner
                return cleaned
            if isinstance(inner, dict):
                return {
                    name: held if name in _STRUCTURE else walk(held) for name, held in inner.items()
                }
            if isinstance(inner, list):
                return [walk(held) for held in inner]
            return inner

        return Cleaned(walk(value), changed)

    def _text(self, text: str, patterns: list[re.Pattern[str]]) -> str:
        for pattern in patterns:
            text = pattern.sub(REPLACED, text)
        if self._function is None:
            return text
        with boundary("redact"):
            text = self._function(text)
        if not isinstance(text, str):
            raise CallbackError(f"redact must return a text, got {type(text).__name__}")
        return text


def keys_in(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """Return the API keys in a request's raw headers."""
    values = [value for name, value in headers if name.lower() in _KEY_HEADERS]
    if not values:
        return ()
    keys = [value.decode("latin-1").rpartition(" ")[2] for value in values]
    return tuple(key for key in keys if len(key) >= SHORTEST)


def without_keys(fields: Fields) -> Fields:
    """Return a request's parameters without those whose name marks them as secrets."""
    return {
        name: raw
        for name, raw in fields.items()
        if not is_secret_name(name) and name != "extra_headers"
    }


def _compiled(patterns: Iterable[str | re.Pattern[str]] | None) -> list[re.Pattern[str]]:
    if patterns is None:
        return []
    if isinstance(patterns, str | re.Pattern):
        patterns = [patterns]
    if not isinstance(patterns, Iterable):
        raise ConfigError(f"redact must be a function or regular expressions, got {patterns!r}")
    try:
        return [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise ConfigError(f"redact must hold regular expressions: {error}") from error
