"""Convert values to plain JSON for a run's folder, without secrets.

Three kinds of secrets are written as "***": values under a key such as `api_key`, text that looks
like a known kind of token, and values of environment variables such as OPENAI_API_KEY.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real

from orbiter.train.errors import DataError
from orbiter.train.redact import MASK, is_secret_name, mask_arguments, mask_text

NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Names of the metric values that JSON has no number for."""


def plain(value: Mapping[str, object], where: str, secrets: Sequence[str]) -> dict[str, object]:
    """Return the mapping as plain JSON without secrets; reject what JSON cannot represent."""
    words: dict[str, object] = {}
    for key, entry in value.items():
        if not isinstance(key, str):
            raise DataError(f"{where} has the key {key!r}: keys must be text")
        inside = _plain_value(entry, f"{where}.{key}", secrets)
        words[key] = MASK if is_secret_name(key) and isinstance(inside, str | list) else inside
    return words


def _plain_value(value: object, where: str, secrets: Sequence[str]) -> object:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        return mask_text(str(value), secrets)
    if isinstance(value, Real):
        # Only metrics may be NaN or infinite.
        if isinstance(finite := number(where, value), str):
            raise DataError(f"{where} must be finite, got {value!r}")
        return finite
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return plain(value, where, secrets)
    if isinstance(value, list | tuple):
        masked = enumerate(mask_arguments(value))
        return [_plain_value(each, f"{where}[{i}]", secrets) for i, each in masked]
    raise DataError(
        f"{where} is of type {type(value).__name__}, which a run's folder cannot hold: "
        "give text, numbers, lists and mappings"
    )


def number(what: str, value: object) -> float | str:
    """Return a plain number, or the name of one that JSON cannot represent."""
    if not isinstance(value, Real):
        raise DataError(f"{what} must be a number, got {value!r}")
    if isinstance(value, Integral) or math.isfinite(value):
        return int(value) if isinstance(value, Integral) else float(value)
    return next(n for n, named in NAMED.items() if named == value or math.isnan(value))
