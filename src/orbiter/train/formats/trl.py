"""TRL's imitation data: whole conversations, or prompts with their completions.

    {"messages": [...], "tools": [...]}
    {"prompt": [...], "completion": [...], "tools": [...]}      or both as plain texts

TRL passes messages to the chat template, so the arguments of a call are an object here, not a
text. A row of the second form is one item; its other scalar fields are in extra columns, which TRL
passes to reward functions and otherwise ignores. Not supported: plain `text` rows and stepwise
labels. Not here: preferences (`trl_preference.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orbiter.train.chat.conversation import (
    CARRIED,
    answer_of,
    conversations,
    items_of,
    note,
    prompt_of,
)
from orbiter.train.chat.message import Message, check_messages, tools_in
from orbiter.train.chat.tool_calls import calls_with_objects
from orbiter.train.errors import DataError
from orbiter.train.formats import openai_chat
from orbiter.train.formats.format import Built, Column, Row, Rows
from orbiter.train.formats.rows import row_format
from orbiter.train.json_files import fields
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import OPTIONAL
from orbiter.train.trajectory.left_out import Left

SCALARS: Mapping[str, Column] = {
    "reward": "number",
    "task_id": "text",
    "episode_id": "text",
    "step": "whole",
    "agent": "text",
    "done": "flag",
    "timestamp": "number",
}
"""Item fields that a row of one item stores in separate columns."""
BESIDE: Mapping[str, Column] = {"tools": "objects", "chat_template_kwargs": "object"}
"""Columns that accompany the messages."""
ONE_ANSWER = (CARRIED - {"metadata.messages_after"}) | {"metadata.chat_template_kwargs"}
"""The item fields that a prompt and an answer in TRL's form can store."""
_WHOLE_CHAT = CARRIED | {"metadata.chat_template_kwargs"}
COLUMNS = ("prompt", "completion", "tools", "chosen", "rejected", "label")
"""Columns that do not go to the metadata."""
_CHECKS: Mapping[str, Callable[[str, object], object]] = {
    "reward": fields.number,
    **{name: OPTIONAL[name] for name in SCALARS if name in OPTIONAL},
}


def frame(item: TrajectoryItem) -> dict[str, Any]:
    """Return the columns that accompany the messages: the tools and the template settings."""
    columns: dict[str, Any] = {"tools": list(item.tools)} if item.tools else {}
    settings = item.metadata.get("chat_template_kwargs")
    return columns if settings is None else {**columns, "chat_template_kwargs": settings}


def trl_message(message: Message) -> dict[str, Any]:
    """Return a message in TRL's form: the arguments of its calls are objects."""
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence):
        return dict(message)
    return {**message, "tool_calls": calls_with_objects(calls)}


def chat_in(value: object, name: str) -> list[Message]:
    """Return the messages in a column: a chat, or a text, which becomes one user message.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [openai_chat.openai_message(message) for message in check_messages(value, name)]


def answered(
    prompt: list[Message], completion: object, name: str, row: Row, where: str
) -> list[TrajectoryItem]:
    """Return the items of a prompt and its completion, which is a text or messages.

    Raises:
        DataError: it is neither, or an item cannot hold it.
    """
    said = [{"role": "assistant", "content": completion}]
    messages = said if isinstance(completion, str) else chat_in(completion, name)
    places = range(len(prompt), len(prompt) + len(messages))
    scalars = _scalars_in(row)
    items = list(
        items_of(
            [*prompt, *messages],
            tools=tools_in(row.get("tools")),
            answers=places,
            episode_id=where,
            metadata=openai_chat.unset_free(row, {*COLUMNS, *scalars}),
        )
    )
    if len(items) > 1:
        scalars.pop("step", None)  # each item's step is its position in the row
    return [replace(item, **scalars) for item in items]


def _scalars_in(row: Row) -> dict[str, Any]:
    """Return the item fields in a row's columns, without columns whose value is invalid."""
    found: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        if row.get(name) is not None:
            with contextlib.suppress(DataError):
                found[name] = check(name, row[name])
    return found


def _claims_messages(row: Row) -> float:
    sure = openai_chat.claims(row)
    if sure != 0.8:
        return 0.0
    messages = row["messages"] if isinstance(row["messages"], list) else []
    return 0.9 if "chat_template_kwargs" in row or any(map(_has_objects, messages)) else 0.7


def _has_objects(message: object) -> bool:
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    functions = [
        call.get("function")
        for call in (calls if isinstance(calls, list) else [])
        if isinstance(call, Mapping)
    ]
    return any(isinstance(f, Mapping) and isinstance(f.get("arguments"), dict) for f in functions)


def _build_messages(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for chat in conversations(items):
        for item in chat.items:
            note(left, item, _WHOLE_CHAT)
        messages = [trl_message(message) for message in openai_chat.weighted(chat)]
        yield Built({"messages": messages, **frame(chat.items[0])}, len(chat.items))


def _claims_completion(row: Row) -> float:
    if "prompt" not in row or not row.keys().isdisjoint({"label", "chosen", "completions"}):
        return 0.0
    return 0.9 if "completion" in row else 0.5


def _parse_completion(row: Row, where: str) -> Iterable[TrajectoryItem]:
    prompt = chat_in(row.get("prompt"), "prompt")
    completion = row.get("completion")
    return answered(prompt, [] if completion is None else completion, "completion", row, where)


def _build_completion(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for item in items:
        note(left, item, _ROW)
        yield Built(completion_row(item), 1)


def completion_row(item: TrajectoryItem) -> dict[str, Any]:
    """Return an item as a prompt and a completion; the completion holds only the answer."""
    row = {
        "prompt": [trl_message(message) for message in prompt_of(item)],
        "completion": [trl_message(answer_of(item))],
        **frame(item),
    }
    return row | scalars_of(item)


def scalars_of(item: TrajectoryItem) -> dict[str, Any]:
    """Return an item's scalar fields as columns."""
    return {name: value for name in SCALARS if (value := getattr(item, name)) is not None}


_ROW = ONE_ANSWER | set(SCALARS)
ROW_COLUMNS: Mapping[str, Column] = {
    "prompt": "objects",
    "completion": "objects",
    **BESIDE,
    **SCALARS,
}
"""The column types of a row of one item."""
MESSAGES = row_format(
    "trl-messages",
    about="TRL 1.16, language modelling on whole conversations",
    survives=_WHOLE_CHAT,
    rows=Rows(
        claims=_claims_messages,
        parse=openai_chat.parse,
        build=_build_messages,
        columns={"messages": "objects", **BESIDE},
    ),
)
PROMPT_COMPLETION = row_format(
    "trl-prompt-completion",
    about="TRL 1.16, a prompt and the completion to learn",
    survives=_ROW,
    rows=Rows(
        claims=_claims_completion,
        parse=_parse_completion,
        build=_build_completion,
        columns=ROW_COLUMNS,
    ),
)
