"""Runs the leaderboard's tools in a child process: `python -I apis.py WHEEL`.

Reads requests from standard input, one JSON object a line, and answers each with one:

    {"begin": {"TicketAPI": {"module": "ticket_api", "start": {...}}}}  -> {"tools": [...]}
    {"call": "create_ticket", "arguments": {"title": "..."}}            -> {"result": "..."}
    {"check": [["create_ticket", [], {"title": "..."}]]}                -> {"right": true}

It ends when its input ends. Only public methods of the classes that were named can be called.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
WITHOUT_STATE = ("MathAPI",)
"""Classes that do not begin with a state."""
MEMORY_BYTES = 2 << 30
"""The maximum address space of the process, in bytes."""


class World:
    """The objects that the calls change, and the same objects with the right calls applied."""

    def __init__(self, classes: Mapping[str, Mapping[str, Any]]) -> None:
        self.objects = _objects(classes)
        self.twins = _objects(classes)
        self.methods = _methods(self.objects)
        self._right = _methods(self.twins)
        self._results: list[str] = []
        self._called = False

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a method; if it raises, the result is the error."""
        self._called = True
        self._results.append(_result(self.methods, name, (), arguments))
        return self._results[-1]

    def check(self, right: Sequence[Sequence[Any]]) -> bool:
        """Apply the right calls of a turn to the twins, and compare; the leaderboard's rule.

        Right is a turn in which something was called, after which all public attributes are those
        of the twins, and in which or before which every result of the right calls was seen.
        """
        called, self._called = self._called, False
        expected = [_result(self._right, name, args, named) for name, args, named in right]
        if not right:
            return True
        seen = self._results.copy()
        for result in expected:
            if result not in seen:
                return False
            # Each result counts as often as the right calls give it.
            seen.remove(result)
        return called and all(map(_equal, self.objects, self.twins))


def _objects(classes: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    made = []
    for name, described in classes.items():
        module = importlib.import_module(f"{PACKAGE}.{described['module']}")
        instance = getattr(module, name)()
        if name not in WITHOUT_STATE:
            instance._load_scenario(copy.deepcopy(described["start"]), long_context=False)
        made.append(instance)
    return made


def _methods(objects: Sequence[Any]) -> dict[str, Any]:
    return {
        name: method
        for each in objects
        for name, method in inspect.getmembers(each, predicate=inspect.ismethod)
        if not name.startswith("_")
    }


def _result(
    methods: Mapping[str, Any], name: str, args: Sequence[Any], named: Mapping[str, Any]
) -> str:
    try:
        # Keeps the tools' own printing out of the answers of this process.
        with contextlib.redirect_stdout(sys.stderr):
            result = methods[name](*args, **named)
        if isinstance(result, str):
            return result
        if not isinstance(result, dict):
            return str(result)
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            return str(result)
    except Exception as error:  # the model reads the tool's error as its result
        return f"Error during execution: {error}"


def _equal(mine: object, right: object) -> bool:
    return all(
        getattr(mine, name) == value
        for name, value in vars(right).items()
        if not name.startswith("_")
    )


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not available on every platform
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> None:
    """Answer requests until the input ends."""
    # A wheel is a zip file, from which Python imports directly.
    sys.path.insert(0, sys.argv[1])
    _limit_memory()
    world = World({})
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if "begin" in request:
            world = World(request["begin"])
            answer = {"tools": sorted(world.methods)}
        elif "call" in request:
            answer = {"result": world.call(request["call"], request["arguments"])}
        else:
            answer = {"right": world.check(request["check"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
