"""The conversations of `multi_turn_base`: the user's requests, the tools, the right calls."""

from __future__ import annotations

import ast
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orbiter.train.demo.requests import ANSWERS, REQUESTS, fetch_wheel
from orbiter.train.errors import DataError, did_you_mean

PART = "multi_turn_base"
DOCS = "bfcl_eval/data/multi_turn_func_doc/{}.json"
MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
"""The classes whose methods are the tools, and the module of each."""
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""The leaderboard's type names that differ from those of JSON schema."""
PURPOSE = "Tool description: "
"""The text between the description of a tool's class and that of the tool."""


class RightCall(NamedTuple):
    """A call that solves a part of a turn."""

    name: str
    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTurnTask:
    """One conversation: several turns, of which each asks for changes or answers."""

    task_id: str
    questions: tuple[str, ...]
    """The user's messages, one for each turn."""
    classes: tuple[str, ...]
    """The classes whose methods are the tools."""
    start: Mapping[str, Any]
    """For each class, the state in which it begins."""
    left_out: tuple[str, ...]
    """Tools that are not offered."""
    right: tuple[tuple[RightCall, ...], ...]
    """Calls that solve each turn."""
    wheel: Path
    """Where the tools' code is."""


class _TurnMessage(msgspec.Struct):
    content: str


class _ConversationRow(msgspec.Struct):
    id: str
    question: list[list[_TurnMessage]]
    initial_config: dict[str, Any]
    involved_classes: list[str]
    excluded_function: list[str] = []


class _Solution(msgspec.Struct):
    id: str
    ground_truth: list[list[str]]


class _ToolSchema(msgspec.Struct):
    name: str
    description: str
    parameters: dict[str, Any]


def load_tasks(
    wheel: Path | None = None, *, classes: Sequence[str] | None = None
) -> list[MultiTurnTask]:
    """Read the 200 conversations of the leaderboard's `multi_turn_base`.

    Args:
        wheel: The leaderboard's wheel; None means the cached one, which pip fetches once.
        classes: Only conversations whose tools all belong to these classes.

    Raises:
        DataError: there is no such class, or the wheel's contents are not as expected.
        StorageError: the wheel is missing and pip could not fetch it.
    """
    for name in classes or ():
        if name not in MODULES:
            raise DataError(f"there is no class {name!r}{did_you_mean(name, list(MODULES))}")
    tasks = list(_all_tasks(os.fspath(wheel or fetch_wheel())).values())
    return [task for task in tasks if classes is None or {*task.classes} <= {*classes}]


def task_of(task_id: str, wheel: Path | None = None) -> MultiTurnTask:
    """Return a conversation.

    Raises:
        DataError: no conversation has this id.
    """
    tasks = _all_tasks(os.fspath(wheel or fetch_wheel()))
    if task_id not in tasks:
        raise DataError(f"{PART} has no conversation {task_id!r}, such as {PART}_0")
    return tasks[task_id]


@cache
def _all_tasks(wheel: str) -> dict[str, MultiTurnTask]:
    with zipfile.ZipFile(wheel) as archive:
        requests = archive.read(REQUESTS.format(PART)).splitlines()
        answers = archive.read(ANSWERS.format(PART)).splitlines()
    try:
        by_id = {
            answer.id: answer.ground_truth
            for answer in (msgspec.json.decode(line, type=_Solution) for line in answers)
        }
        decoded = [msgspec.json.decode(line, type=_ConversationRow) for line in requests]
        return {row.id: _task(row, by_id[row.id], Path(wheel)) for row in decoded}
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise DataError(f"{PART} is not as expected in {wheel}: {error}") from error


def _task(row: _ConversationRow, right: Sequence[Sequence[str]], wheel: Path) -> MultiTurnTask:
    unknown = [name for name in row.involved_classes if name not in MODULES]
    if unknown or len(right) != len(row.question):
        raise ValueError(f"{row.id} has classes {unknown} or {len(right)} solved turns")
    return MultiTurnTask(
        task_id=row.id,
        questions=tuple("\n".join(each.content for each in turn) for turn in row.question),
        classes=tuple(row.involved_classes),
        start={name: row.initial_config.get(name, {}) for name in row.involved_classes},
        left_out=tuple(row.excluded_function),
        right=tuple(tuple(map(parse_right_call, turn)) for turn in right),
        wheel=wheel,
    )


def parse_right_call(text: str) -> RightCall:
    """Read a right call, such as `mv(source='a', destination='b')`; only literals are arguments.

    Raises:
        ValueError: it is something else.
    """
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a call: {text!r}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"not a call: {text!r}")
    # literal_eval runs nothing, so a changed wheel cannot execute code here.
    named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    return RightCall(call.func.id, tuple(map(ast.literal_eval, call.args)), named)


def tool_schemas(task: MultiTurnTask) -> list[dict[str, Any]]:
    """Return name, description and JSON schema of each tool of a conversation.

    The sentence about its class, which the leaderboard repeats for each tool, is left out.
    """
    with zipfile.ZipFile(task.wheel) as archive:
        tools = [
            msgspec.json.decode(line, type=_ToolSchema)
            for name in task.classes
            for line in archive.read(DOCS.format(MODULES[name])).splitlines()
        ]
    return [
        {
            "name": tool.name,
            "description": tool.description.partition(PURPOSE)[2] or tool.description,
            "parameters": _as_json_schema(tool.parameters),
        }
        for tool in tools
        if tool.name not in task.left_out
    ]


def _as_json_schema(schema: object) -> Any:  # noqa: ANN401 - JSON
    if isinstance(schema, list):
        return [_as_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    inner = {key: _as_json_schema(value) for key, value in schema.items()}
    return inner | {"type": JSON_TYPES.get(kind, kind)} if isinstance(kind, str) else inner
