"""A scripted reference agent that answers the training requests, a quarter of them wrongly.

It represents an agent with recorded traces: useful on the whole, but not always right.
It makes the mistakes that tool-calling agents make: the name of a similar function, an argument
that is missing, invented or of the wrong type, a wrong number.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from orbiter.train.demo.check import verdict
from orbiter.train.demo.requests import ToolRequest
from orbiter.train.seeding import sub_random

ERROR_RATE = 0.25


def answer_all(requests: Sequence[ToolRequest], *, seed: int) -> list[str]:
    """Answer every request; exactly a quarter of the answers, rounded, are wrong."""
    order = list(range(len(requests)))
    sub_random(seed, "reference agent").shuffle(order)
    wrong = set(order[: round(ERROR_RATE * len(requests))])
    return [
        mistaken_call(request, sub_random(seed, "mistake", request.id))
        if index in wrong
        else right_call(request)
        for index, request in enumerate(requests)
    ]


def right_call(request: ToolRequest) -> str:
    """Write the call with the first accepted value of every argument that must be given."""
    return write_call(request.function.name, right_arguments(request))


def right_arguments(request: ToolRequest) -> dict[str, object]:
    """Return the first accepted value of every argument that may not be omitted."""
    required = request.function.parameters.required
    return {
        name: _first(values)
        for name, values in request.accepted.items()
        if name in required or "" not in values
    }


def write_call(name: str, arguments: Mapping[str, object]) -> str:
    """Write a call in Python's syntax."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def mistaken_call(request: ToolRequest, generator: random.Random) -> str:
    """Write a plausible call that the checker rejects."""
    mistakes = [_other_function, _forgotten, _made_up, _off, _mistyped]
    generator.shuffle(mistakes)
    calls = (mistake(request, generator) for mistake in mistakes)
    # Some changes are no mistake for some requests, where several values are accepted.
    return next(call for call in calls if not verdict(call, request).right)


def _other_function(request: ToolRequest, generator: random.Random) -> str:
    name = request.function.name
    neighbours = [f"get_{name}", name.replace(".", "_") + "_v2", name.partition(".")[0] + ".run"]
    return write_call(generator.choice(neighbours), right_arguments(request))


def _forgotten(request: ToolRequest, generator: random.Random) -> str:
    arguments = right_arguments(request)
    arguments.pop(generator.choice(list(arguments)))
    return write_call(request.function.name, arguments)


def _made_up(request: ToolRequest, generator: random.Random) -> str:
    extra = generator.choice(["verbose", "format", "limit", "mode"])
    return write_call(request.function.name, {**right_arguments(request), extra: "default"})


def _off(request: ToolRequest, generator: random.Random) -> str:
    arguments = right_arguments(request)
    name = generator.choice(list(arguments))
    arguments[name] = _spoilt(arguments[name])
    return write_call(request.function.name, arguments)


def _mistyped(request: ToolRequest, generator: random.Random) -> str:
    arguments = right_arguments(request)
    name = generator.choice(list(arguments))
    value = arguments[name]
    arguments[name] = [value] if isinstance(value, str) else str(value)
    return write_call(request.function.name, arguments)


def _spoilt(value: object) -> object:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return value[:-1]
        case str():
            return value.partition(" ")[0] if " " in value else value + "s"
    return {}


def _first(accepted: Sequence[object]) -> object:
    value = next((one for one in accepted if one != ""), "")
    return _first_inside(value)


def _first_inside(value: object) -> object:
    """Resolve a dict that holds a list of accepted values for each of its keys."""
    if isinstance(value, dict):
        return {key: _first(ones) for key, ones in value.items() if "" not in ones}
    if isinstance(value, list):
        return [_first_inside(item) for item in value]
    return value
