"""Convert the calls and tools of data files to OpenAI's form; refuse those of an unknown kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import arguments_text, function_call
from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json


def calls_in(value: object, name: str) -> list[dict[str, Any]]:
    """Return the calls in a text, or decoded JSON, that is one call or a list of calls.

    Raises:
        DataError: it is anything else; the message begins with `name`.
    """
    if isinstance(value, str):
        value = decoded(value, f"{name} must be a call as JSON")
    given = value if isinstance(value, list) else [value]
    if not given:
        raise DataError(f"{name} must be a call, or a list of calls, got {fields.shown(value)}")
    return [
        call_in(call, f"{name}[{index}]" if isinstance(value, list) else name)
        for index, call in enumerate(given)
    ]


def normal_tools(value: object, name: str = "tools") -> list[Message] | None:
    """Return the tools on offer in OpenAI's form; None without tools.

    Some files store them as JSON text. Anthropic's tools and bare functions are wrapped; the tools
    of an API's server, which have only a type, stay as they are.

    Raises:
        DataError: they are not a list of objects, or one has neither a name nor a type.
    """
    if isinstance(value, str):
        value = decoded(value, f"{name} must be a list") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"{name} must be a list of objects, got {fields.shown(value)}")
    return [_tool(tool, f"{name}[{index}]") for index, tool in enumerate(value)]


class OpenCalls:
    """Assigns ids to calls that have none, and matches results with the calls they answer."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[tuple[str, str]] = []
        """The id and the name of each call that still waits for its result."""

    def coming(self, count: int) -> list[str]:
        """Return the ids that the next calls will get."""
        return [f"call_{self._count + index}" for index in range(count)]

    def give(self, calls: list[dict[str, Any]]) -> None:
        """Assign ids to calls; results answer calls in order."""
        for call, new_id in zip(calls, self.coming(len(calls)), strict=True):
            call.setdefault("id", new_id)
        self._count += len(calls)
        # A new answer closes the calls before it: results that come later belong to it.
        self._open = [(str(call["id"]), _name_in(call)) for call in calls]

    def add(self, calls: list[dict[str, Any]]) -> None:
        """Assign ids to calls that belong to the same answer as the calls before."""
        before = self._open
        self.give(calls)
        self._open = before + self._open

    def take(self, count: int = 1, name: object = None) -> list[str]:
        """Return the ids of the calls that the next results answer.

        Args:
            count: The number of results.
            name: The tool that gave the results, if it is known.
        """
        mine = [call for call in self._open if not isinstance(name, str) or call[1] == name]
        taken = mine[:count]
        self._open = [call for call in self._open if call not in taken]
        return [call_id for call_id, _ in taken]


def decoded(text: str, claim: str) -> object:
    """Decode JSON text; an error begins with what the text should be."""
    try:
        return decode_json(text, unique=True)
    except DataError as error:
        raise DataError(f"{claim}: {error}") from error


def call_in(call: object, name: str) -> dict[str, Any]:
    """Return a call in OpenAI's form, whichever known form it has."""
    if not isinstance(call, Mapping):
        raise DataError(f"{name} must be a call, got {fields.shown(call)}")
    given = {key: value for key, value in call.items() if value is not None}
    kind, function, custom = given.get("type"), given.get("function"), given.get("custom")
    if kind is not None and not isinstance(kind, str):
        raise DataError(f"{name}: unknown call {fields.shown(call)}: its type must be text")
    if isinstance(function, Mapping):
        text = arguments_text(_arguments_in(function))
        rest = {key: value for key, value in function.items() if key not in _ARGUMENTS}
        called = {**rest, "name": _named(function, name), "arguments": text}
        return {**given, "type": "function", "function": called}
    # A custom tool of OpenAI takes free text, which is not JSON and must not be parsed as such.
    if isinstance(custom, Mapping):
        if not isinstance(custom.get("input"), str):
            raise DataError(f"{name}: the input of a custom call must be text, got {custom!r:.80}")
        _named(custom, name)
        return {**given, "type": "custom"}
    if isinstance(given.get("name"), str) and kind in _FLAT:
        converted = function_call(None, _named(given, name), _arguments_in(given))
        call_id = given.get("call_id", given.get("id", given.get("tool_call_id")))
        return {**({} if call_id is None else {"id": str(call_id)}), **_without_id(converted)}
    # After the forms above, since `function_call` ends in `_call` too.
    if isinstance(kind, str) and kind not in _FLAT and kind.endswith(_SERVER_CALLS):
        return given
    raise DataError(
        f"{name}: unknown call {fields.shown(call)}: expected a function or a custom tool with its "
        "name"
    )


def _named(holder: Mapping[str, Any], name: str) -> str:
    called = holder.get("name")
    if not isinstance(called, str) or not called:
        raise DataError(f"{name}: a call must name its tool, got {fields.shown(called)}")
    return called


def _arguments_in(holder: Mapping[str, Any]) -> object:
    return next((holder[key] for key in _ARGUMENTS if holder.get(key) is not None), None)


def _without_id(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key != "id"}


def _name_in(call: Mapping[str, Any]) -> str:
    holder = call.get("function") or call.get("custom") or call
    return str(holder.get("name") or "") if isinstance(holder, Mapping) else ""


def _tool(tool: Message, name: str) -> Message:
    if isinstance(tool.get("function"), Mapping):
        return tool
    if "input_schema" in tool:
        kept = {key: tool[key] for key in ("name", "description") if tool.get(key) is not None}
        return {"type": "function", "function": {**kept, "parameters": tool["input_schema"]}}
    if isinstance(tool.get("name"), str) and tool.get("type") in (None, "function"):
        function = {key: value for key, value in tool.items() if key != "type"}
        return {"type": "function", "function": function}
    if not isinstance(tool.get("type"), str):
        raise DataError(f"{name} has neither a name nor a type, got {fields.shown(tool)}")
    return tool


_SERVER_CALLS = "_call"
"""Type ending of OpenAI's calls that its server ran, such as `web_search_call`; they stay as is."""
CALL_TYPES = frozenset({"tool_use", "tool_call", "function_call"})
_FLAT = frozenset({None, "function", *CALL_TYPES})
"""The types of calls whose name and arguments are not in a separate object."""
_ARGUMENTS = ("arguments", "args", "input", "parameters")
