"""TRL's imitation data: whole conversations, or prompts with their completions.

    {"messages": [...], "tools": [...]}
    {"prompt": [...], "completion": [...], "tools": [...]}      or both as plain texts

TRL passes messages to the chat template, so the arguments of a call are an object here, not a
text. A row of the second form is one item; its other scalar fields are in extra columns, which TRL
passes to reward functions and otherwise ignores. Not supported: plain `text` rows and stepwise
labels. Not here: preferences (`trl_preference.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orbiter.train.chat.conversation import CARRIED, answer_of, conversations, note, prompt_of
from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import calls_with_objects
from orbiter.train.errors import DataError
from orbiter.train.formats import openai_chat
from orbiter.train.formats.chats import SCALARS, answer_in, answered, prompt_in
from orbiter.train.formats.format import Built, Column, Row, Rows
from orbiter.train.formats.rows import row_format
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

BESIDE: Mapping[str, Column] = {"tools": "objects", "chat_template_kwargs": "object"}
"""Columns that accompany the messages."""
ONE_ANSWER = (CARRIED - {"metadata.messages_after"}) | {"metadata.chat_template_kwargs"}
"""The item fields that a prompt and an answer in TRL's form can store."""
PROMPTLESS = "items without a prompt"
_COMPLETIONS = ("completion", "response", "generation")
"""Columns that hold the answer to a prompt; the last two are other tools' names for it."""
_WHOLE_CHAT = CARRIED | {"metadata.chat_template_kwargs"}


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


def _claims_messages(row: Row) -> float:
    sure = openai_chat.claims(row)
    # 1.0 has marks that only OpenAI's files have, 0 is no chat; 0.8 is undecided.
    if sure != 0.8:
        return 0.0
    messages = row["messages"] if isinstance(row["messages"], list) else []
    # Arguments as objects are TRL's; OpenAI's are texts.
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
    # These belong to TRL's other types: unpaired, preference, stepwise supervision.
    if "prompt" not in row or not row.keys().isdisjoint({"label", "chosen", "completions"}):
        return 0.0
    # Prompts alone are read as tasks, unless another format knows better.
    return 0.9 if "completion" in row else 0.5


def _parse_completion(row: Row, where: str) -> Iterable[TrajectoryItem]:
    prompt = prompt_in(row)
    if prompt is None:
        raise DataError("prompt must be a text or a list of messages, got None")
    name = next((name for name in _COMPLETIONS if row.get(name) is not None), None)
    answer = [] if name is None else answer_in(row[name], name)
    return answered(prompt, answer, row, where, known={name} if name else ())


def _build_completion(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for item in items:
        if not prompt_of(item):
            # A row needs at least one message before its answer.
            left[PROMPTLESS] += 1
            continue
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
