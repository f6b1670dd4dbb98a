"""Check whether a call is right: the leaderboard's verdict, and a graded score for training.

`verdict` agrees with the checker of the Berkeley Function-Calling Leaderboard (Python, one call)
on every row of `tests/demo/verdicts.json.gz`, which `tests/demo/make_verdicts.py` writes by running
that checker itself. Comments mark the rules that look odd but are that checker's.

Several calls at once, Java and JavaScript are not supported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orbiter.train.demo.call import Call, parse_call
from orbiter.train.demo.requests import Parameter, ToolRequest
from orbiter.train.errors import DataError

_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_OMITTED = ""
"""Among the accepted values of an argument, this means that it may be omitted."""


class CallVerdict(NamedTuple):
    """Right or wrong, and the first reason why it is wrong."""

    right: bool
    reason: str


def verdict(reply: str, request: ToolRequest) -> CallVerdict:
    """Judge a model's reply: exactly one call, every argument among its accepted values."""
    try:
        call = parse_call(reply)
    except DataError as error:
        return CallVerdict(False, str(error))
    faults = _faults(call, request)
    return CallVerdict(not faults, faults[0] if faults else "")


def score(reply: str, request: ToolRequest) -> float:
    """Grade a reply for training: 1 for a right call, else part of 0.6 for its right parts.

        0                           not one call
        0.1                         a call of another function
        0.2 + 0.4 · right / named   the right function; `named`: accepted and given arguments

    Only for the reward of a training run; results are always reported by `verdict`.
    """
    try:
        call = parse_call(reply)
    except DataError:
        return 0.0
    if not _faults(call, request):
        return 1.0
    if call.name != request.function.name:
        return 0.1
    # Both, so that leaving out and inventing an argument cost alike.
    named = call.arguments.keys() | request.accepted.keys()
    right = sum(not _argument_fault(name, call, request) for name in named)
    return 0.2 + 0.4 * right / len(named)


def _faults(call: Call, request: ToolRequest) -> list[str]:
    if call.name != request.function.name:
        return [f"calls {call.name!r}, not {request.function.name!r}"]
    required = request.function.parameters.required
    missing = [f"{name} is required" for name in required if name not in call.arguments]
    # An accepted argument that may not be omitted is needed even if the schema does not say so.
    named = [*call.arguments, *(name for name in request.accepted if name not in call.arguments)]
    return missing or [fault for name in named if (fault := _argument_fault(name, call, request))]


def _argument_fault(name: str | None, call: Call, request: ToolRequest) -> str:
    """Describe what is wrong with one argument; "" if it is right."""
    properties = request.function.parameters.properties
    if name is None or name not in request.accepted:
        return f"{name} is not expected"
    accepted = request.accepted[name]
    if name not in call.arguments:
        return "" if _OMITTED in accepted else f"{name} is missing"
    value = call.arguments[name]
    if name in properties and _is_accepted(value, accepted, properties[name]):
        return ""
    return f"{name}={value!r} is not one of {list(accepted)!r}"


def _is_accepted(value: object, accepted: Sequence[object], parameter: Parameter) -> bool:
    wanted = _TYPES[parameter.type]
    inner = _TYPES[parameter.items.type] if parameter.items and wanted is list else None
    if parameter.type == "tuple" and isinstance(value, tuple):
        value = list(value)
    # The leaderboard accepts 5 for 5.0, but not 5.0 for 5. Huge ints do not fit a float.
    if parameter.type == "float" and type(value) is int:
        value = float(value) if abs(value) < 10**300 else value
    kind = _kind(accepted)
    if type(value) is not wanted and (kind is None or type(value) is not kind):
        return False
    if type(value) is not wanted or kind not in (None, wanted):
        # It has the accepted values' type instead of the schema's: compare it unchanged.
        return value in accepted
    return _has_inner_type(value, accepted, inner) and _equals_one(value, accepted, inner)


def _kind(accepted: Sequence[object]) -> type | None:
    """Return the type of the first accepted value, which may differ from the schema's."""
    return next((type(value) for value in accepted if value != _OMITTED), None)


def _has_inner_type(value: object, accepted: Sequence[object], inner: type | None) -> bool:
    if inner is None or not isinstance(value, list):
        return True
    return any(
        not isinstance(candidate, list)  # an argument that may be omitted is of every inner type
        or all(type(item) in (inner, _kind(candidate)) for item in value)
        for candidate in accepted
    )


def _equals_one(value: object, accepted: Sequence[object], inner: type | None) -> bool:
    match value:
        case str():
            return _plain(value) in [_plain(one) for one in accepted if isinstance(one, str)]
        case dict():
            return any(_equals_dict(value, one) for one in accepted)
        case list() if inner is dict:
            return any(_equals_dicts(value, one) for one in accepted)
        case list():
            # The omitted mark is an empty text, whose list of characters equals an empty list.
            return [_plain(item) for item in value] in [
                [_plain(item) for item in one] for one in accepted if isinstance(one, list | str)
            ]
    return value in accepted


def _equals_dicts(value: Sequence[object], accepted: object) -> bool:
    """Compare lists of dicts in order; the omitted mark is an empty list here as well."""
    if not isinstance(accepted, list | str) or len(value) != len(accepted):
        return False
    return all(_equals_dict(item, one) for item, one in zip(value, accepted, strict=True))


def _equals_dict(value: object, accepted: object) -> bool:
    """Compare a dict with one whose every value is a list of accepted values."""
    if not isinstance(value, Mapping) or not isinstance(accepted, Mapping):
        return False
    given = all(
        name in accepted and _plain(item) in [_plain(one) for one in accepted[name]]
        for name, item in value.items()
    )
    return given and all(name in value or _OMITTED in accepted[name] for name in accepted)


def _plain(value: object) -> object:
    """Normalise a text: lower case, without blanks and the punctuation that does not matter."""
    if not isinstance(value, str):
        return value
    # The leaderboard's own normalisation, down to the list of characters.
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
