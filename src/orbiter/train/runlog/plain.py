"""Convert values to plain JSON for a run's folder, without secrets.

Three kinds of secrets are written as "***": values under a key such as `api_key`, text that looks
like a known kind of token, and values of environment variables such as OPENAI_API_KEY.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real

from orbiter.train.errors import DataError

MASK = "***"
"""Replaces a secret."""

_SECRET_KEY = re.compile(
    r"(?:^|_)(?:(?:api|access|secret|private|auth|signing)_?key"
    r"|(?:hf|hub|api|access|auth|bearer|refresh|session|github|gh|wandb|personal)_?token"
    r"|secret|password|passwd|passphrase|credential|authorization|cookie)s?$|^token$"
)
_SECRET_TEXT = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,})|(?<=Bearer )[\w.~+/=-]{16,}|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)"
)

NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Names of the metric values that JSON has no number for."""

_SHORTEST_SECRET = 8
"""In characters; shorter environment variables are not searched for as secrets."""


def plain(value: Mapping[str, object], where: str, secrets: Sequence[str]) -> dict[str, object]:
    """Return the mapping as plain JSON without secrets; reject what JSON cannot represent."""
    words: dict[str, object] = {}
    for key, entry in value.items():
        if not isinstance(key, str):
            raise DataError(f"{where} has the key {key!r}: keys must be text")
        inside = _plain_value(entry, f"{where}.{key}", secrets)
        words[key] = MASK if _is_secret_key(key) and isinstance(inside, str | list) else inside
    return words


def _plain_value(value: object, where: str, secrets: Sequence[str]) -> object:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        return _without_secrets(str(value), secrets)
    if isinstance(value, Real):
        if isinstance(finite := number(where, value), str):
            raise DataError(f"{where} must be finite, got {value!r}")
        return finite
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return plain(value, where, secrets)
    if isinstance(value, list | tuple):
        return [_plain_value(each, f"{where}[{i}]", secrets) for i, each in enumerate(value)]
    raise DataError(
        f"{where} is of type {type(value).__name__}, which a run's folder cannot hold: "
        "give text, numbers, lists and mappings"
    )


def _is_secret_key(key: str) -> bool:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").lower()
    return _SECRET_KEY.search(snake) is not None


def _without_secrets(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return _SECRET_TEXT.sub(MASK, text)


def secrets_of_the_environment() -> list[str]:
    """Return the values of variables that are named like secrets, the longest first."""
    values = {value for name, value in os.environ.items() if _is_secret_key(name.lower())}
    return sorted((v for v in values if len(v) >= _SHORTEST_SECRET), key=len, reverse=True)


def number(what: str, value: object) -> float | str:
    """Return a plain number, or the name of one that JSON cannot represent."""
    if not isinstance(value, Real):
        raise DataError(f"{what} must be a number, got {value!r}")
    if isinstance(value, Integral) or math.isfinite(value):
        return int(value) if isinstance(value, Integral) else float(value)
    return next(n for n, named in NAMED.items() if named == value or math.isnan(value))
