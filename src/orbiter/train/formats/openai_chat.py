"""OpenAI's fine-tuning files: one conversation per line, with its tools.

    {"messages": [{"role": ..., "content": ...}, ...], "tools": [...], "parallel_tool_calls": true}

An answer with `"weight": 0` is context and not to be learned: it makes no item. Answers in the
history that belong to no item are written with that weight. Other keys of a line, such as those
for a grader in reinforcement fine-tuning, go to the metadata. Not here: preferences
(`openai_dpo.py`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from orbiter.train.chat.conversation import (
    CARRIED,
    Conversation,
    conversations,
    items_of,
    note,
)
from orbiter.train.chat.message import Message, check_messages, tools_in
from orbiter.train.chat.tool_calls import calls_with_text
from orbiter.train.errors import DataError
from orbiter.train.formats.format import Built, Column, Row, Rows
from orbiter.train.formats.rows import row_format
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

_CARRIED = CARRIED | {"metadata.parallel_tool_calls"}
_OWN = ("messages", "tools")
COLUMNS: Mapping[str, Column] = {
    "messages": "objects",
    "tools": "objects",
    "parallel_tool_calls": "flag",
}
"""The column types."""


def claims(row: Row) -> float:
    """Return the confidence that a row is an OpenAI chat; a TRL row looks nearly the same."""
    if "messages" not in row or not row.keys().isdisjoint({"state", "chosen", "conversations"}):
        return 0.0
    messages = row["messages"] if isinstance(row["messages"], list) else []
    weighted = any(isinstance(message, Mapping) and "weight" in message for message in messages)
    return 1.0 if weighted or "parallel_tool_calls" in row else 0.8


def parse(row: Row, where: str) -> Iterator[TrajectoryItem]:
    """Yield the items of a conversation."""
    messages = check_messages(row.get("messages"))
    return items_of(
        [openai_message(message) for message in messages],
        tools=tools_in(row.get("tools")),
        answers=learned(messages),
        episode_id=where,
        metadata=unset_free(row, _OWN),
    )


def build(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    """Yield one row per conversation."""
    for chat in conversations(items):
        for item in chat.items:
            note(left, item, _CARRIED)
        row: dict[str, Any] = {"messages": weighted(chat)}
        if chat.tools:
            row["tools"] = list(chat.tools)
        parallel = chat.items[0].metadata.get("parallel_tool_calls")
        if parallel is not None:
            row["parallel_tool_calls"] = parallel
        yield Built(row, len(chat.items))


def learned(messages: Sequence[Message]) -> frozenset[int]:
    """Return the indices of the messages that are to be learned.

    Raises:
        DataError: a weight is neither 0 nor 1.
    """
    for place, message in enumerate(messages):
        if (weight := message.get("weight")) not in (None, 0, 1):
            raise DataError(f"messages[{place}]: weight must be 0 or 1, got {weight!r}")
    return frozenset(place for place, message in enumerate(messages) if message.get("weight") != 0)


def weighted(chat: Conversation) -> list[dict[str, Any]]:
    """Return the messages of a chat; answers that belong to no item get weight 0."""
    answers = set(chat.answers)
    return [
        {**_unweighted(message), "weight": 0}
        if message["role"] == "assistant" and place not in answers
        else _unweighted(message)
        for place, message in enumerate(chat.messages)
    ]


def openai_message(message: Message) -> dict[str, Any]:
    """Return a message as items store it: OpenAI tool calls, no weight, no unset fields."""
    kept = {key: value for key, value in message.items() if key == "content" or value is not None}
    kept.pop("weight", None)
    if calls := kept.pop("tool_calls", None):
        kept["tool_calls"] = calls_with_text(cast("list[Message]", calls))
    return kept


def unset_free(row: Row, known: Container[str]) -> dict[str, Any]:
    """Return the columns that are set and not in `known`; they go to the metadata."""
    return {key: value for key, value in row.items() if key not in known and value is not None}


def _unweighted(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "weight"}


FORMAT = row_format(
    "openai-chat",
    about="OpenAI fine-tuning (messages, tools, weight), 2026",
    survives=_CARRIED,
    rows=Rows(claims=claims, parse=parse, build=build, columns=COLUMNS),
)
