"""Masks private data in messages and metadata: secrets, e-mail addresses, names of home folders.

The rules are those of `orbiter.train.redact`. Ids and roles stay as they are, so that calls and
results still belong together.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from orbiter.train.chat.tool_calls import arguments_of, as_json
from orbiter.train.redact import mask_named, mask_private

T = TypeVar("T")

_STRUCTURE = frozenset({"role", "type", "id", "tool_call_id", "response_id", "finish_reason"})
"""Fields that hold no free text."""


def without_private(value: T) -> T:
    """Return a JSON value with private data masked in all its texts."""
    return cast("T", _masked(value))


def _masked(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        # An image as text would be destroyed by a pattern that matches inside it.
        return value if value.startswith("data:") else mask_private(value)
    if isinstance(value, dict):
        return {name: _masked_field(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner) for inner in value]
    return value


def _masked_field(name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON
    if name in _STRUCTURE:
        return value
    if name == "arguments" and isinstance(value, str):
        # Mask inside the JSON, where the names of the arguments tell which of them are secrets.
        arguments = arguments_of(value)
        if isinstance(arguments, dict):
            masked = _masked(mask_named(arguments))
            # Unchanged arguments keep the model's own spelling, which training should see.
            return value if masked == arguments else as_json(masked)
    if name == "data" and isinstance(value, str) and len(value) > _LONG and " " not in value:
        return value  # image data, which no pattern may change
    return _masked(value)


_LONG = 256
