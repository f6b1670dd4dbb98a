"""Validates values that JSON in UTF-8 must hold, and encodes them.

Each validator returns the value to store or raises a `DataError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import cast

import msgspec

from orbiter.train.errors import DataError


def text(name: str, value: object) -> str:
    """Accept a string that UTF-8 can encode; an instance of a subclass becomes a plain `str`."""
    if not isinstance(value, str):
        raise _wrong(name, "a str", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} has half a surrogate pair at character {error.start}, which is not a text: "
            "clean it with s.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error
    # A subclass may carry more than its text, such as a str enum, and msgspec encodes it
    # differently.
    return str.__str__(value)


def number(name: str, value: object) -> float:
    """Accept a finite real number, also NumPy's or a bool; an int must be exact as a float."""
    if not isinstance(value, Real):
        raise _wrong(name, "a number", value)
    try:
        result = float(value)
    except OverflowError:
        # Refused below with the other numbers that are not finite.
        result = math.inf
    if not math.isfinite(result):
        raise DataError(f"{name} must be finite, got {shown(value)}")
    # From 2**53 on a float cannot hold every whole number, and a file would give another one back.
    if isinstance(value, Integral) and int(value) != result:
        raise DataError(f"{name} is {shown(value)}, which a float would round to {result!r}")
    return result


def whole(name: str, value: object) -> int:
    """Accept an integer, also NumPy's, but not a bool."""
    # bool is a subclass of int, and True would be stored as step 1.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _wrong(name, "an int", value)
    return int(value)


def flag(name: str, value: object) -> bool:
    """Accept True or False."""
    if not isinstance(value, bool):
        raise _wrong(name, "True or False", value)
    return value


def json_object(name: str, value: object) -> Mapping[str, object]:
    """Accept a mapping that survives a round trip through JSON."""
    if type(value) is dict and _is_flat(value):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(name, "a dict", value)
    _check_json(name, value)
    return value


def json_objects(name: str, value: object) -> list[Mapping[str, object]]:
    """Accept a list of mappings that survive a round trip through JSON; return a new list.

    A new list, because the caller may append to its conversation after the step was recorded.
    """
    given = _listed(name, value)
    for index, inner in enumerate(given):
        if type(inner) is not dict and not isinstance(inner, Mapping):
            raise _wrong(f"{name}[{index}]", "a dict", inner)
    _check_json(name, given)
    return cast("list[Mapping[str, object]]", list(given))


def token_ids(name: str, value: object) -> list[int]:
    """Accept a list of ints; return a new list."""
    given = _listed(name, value)
    # Usually one look at the types is enough, without a call for each token.
    if not set(map(type, given)) <= {int}:
        return [whole(f"{name}[{index}]", inner) for index, inner in enumerate(given)]
    return cast("list[int]", list(given))


def numbers(name: str, value: object) -> list[float]:
    """Accept a list of finite numbers; return a new list."""
    given = _listed(name, value)
    if set(map(type, given)) <= {float} and all(map(math.isfinite, cast("list[float]", given))):
        return cast("list[float]", list(given))
    return [number(f"{name}[{index}]", inner) for index, inner in enumerate(given)]


def shown(value: object) -> str:
    """Return the repr of a value for use in a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def encode(value: object) -> bytes:
    """Return a validated value as one line of JSON, with keys in their given order."""
    return _ENCODER.encode(value)


def encode_sorted(value: object) -> bytes:
    """Return a validated value as JSON with sorted keys: equal content gives equal bytes."""
    return _SORTED_ENCODER.encode(value)


def _wrong(name: str, expected: str, value: object) -> DataError:
    return DataError(f"{name} must be {expected}, got {type(value).__name__} {shown(value)}")


def _listed(name: str, value: object) -> list[object] | tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, "a list", value)
    return value


def _check_json(name: str, value: object) -> None:
    try:
        if not _is_json(value):
            _refuse(name, value)
    except RecursionError:
        raise DataError(f"{name} is nested too deep, or contains itself") from None


def _is_flat(value: dict[object, object]) -> bool:
    """Return whether a dict certainly holds only plain values; a fast path for most metadata."""
    for key, inner in value.items():
        if type(key) is not str or not key.isascii():
            return False
        if type(inner) is str:
            if not inner.isascii():
                return False
        elif type(inner) not in _ATOMS:
            return False
    return True


def _is_json(value: object) -> bool:
    """Return whether a value is certainly valid; fast, since every captured message is checked."""
    kind = type(value)
    if kind is dict:
        for key, inner in cast("dict[object, object]", value).items():
            if type(key) is not str or not key.isascii():
                return False
            if not (type(inner) is str and inner.isascii()) and not _is_json(inner):
                return False
        return True
    if kind is list or kind is tuple:
        return all(map(_is_json, cast("list[object]", value)))
    if kind is str:
        return cast("str", value).isascii()
    return kind in _ATOMS or (kind is float and math.isfinite(cast("float", value)))


def _refuse(name: str, value: object) -> None:
    """Search again, tracking the path, and raise at the first value that JSON cannot represent."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if type(key) is not str:
                raise _wrong(f"a key of {name}", "a str", key)
            text(f"a key of {name}", key)
            _refuse(f"{name}[{key!r}]", inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _refuse(f"{name}[{index}]", inner)
    elif isinstance(value, str):
        text(name, value)
    elif isinstance(value, Real) and not math.isfinite(value):
        raise DataError(f"{name} must be finite, got {shown(value)}: JSON has no such number")
    elif value is not None and not isinstance(value, Real):
        raise _wrong(name, "a value that JSON can represent", value)


_ATOMS = frozenset((int, bool, type(None)))


def _plain(value: object) -> object:
    """Convert a value to an exact JSON type, since msgspec accepts no subclasses."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
_SORTED_ENCODER = msgspec.json.Encoder(enc_hook=_plain, order="sorted")
