"""Turns the objects that agents take and return into plain values, which JSON can hold."""

from __future__ import annotations

import dataclasses
from typing import cast


def as_plain(value: object) -> object:
    """Return a dataclass or a pydantic model as a dict of its fields, anything else unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not asdict, which copies every value and fails on those that cannot be copied.
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # By its method, so that pydantic need not be imported.
    dump = getattr(type(value), "model_dump", None)
    if callable(dump):
        return cast("object", dump(value, mode="json"))
    return value


def as_plain_or_text(value: object) -> object:
    """Return a value as `as_plain` does, and what then still has no JSON form as text."""
    plain = as_plain(value)
    return str(value) if plain is value else plain


def content_of(value: object) -> object:
    """Return what identifies a value in another process, where it has another address.

    It is the value's text, unless that is the default one, which contains the address; then it is
    the name of the class with the attributes.
    """
    plain = as_plain(value)
    if plain is not value:
        return plain
    if type(value).__repr__ is object.__repr__:
        return {type(value).__qualname__: getattr(value, "__dict__", {})}
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)
