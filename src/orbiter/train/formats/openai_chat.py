"""OpenAI's fine-tuning files: one conversation per line, with its tools.

    {"messages": [{"role": ..., "content": ...}, ...], "tools": [...], "parallel_tool_calls": true}

An answer with `"weight": 0` is context and not to be learned: it makes no item. Answers in the
history that belong to no item are written with that weight. Other keys of a line, such as those
for a grader in reinforcement fine-tuning, go to the metadata.

Rows of other tools that store a chat in `messages` are read too: Anthropic's blocks, and what
LLaMA-Factory and ms-swift put beside it: `label` or `kto_tag` (true or false) is the reward of the
last answer, and `rejected_response` or `rejected_messages` is a worse answer in its place. Not
here: preferences (`openai_dpo.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from orbiter.train.chat.conversation import (
    CARRIED,
    Conversation,
    conversations,
    items_of,
    note,
)
from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.formats.chats import (
    TAG,
    ChatPrompt,
    answer_in,
    answered,
    learned,
    messages_in,
    openai_message,
    says_nothing,
    scalars_in,
    tag_in,
    tools_in,
    unset_free,
    used,
)
from orbiter.train.formats.format import Built, Column, Row, Rows
from orbiter.train.formats.rows import row_format
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

_CARRIED = CARRIED | {"metadata.parallel_tool_calls"}
TOOLS = ("tools", "functions")
"""Columns that hold the tools; the second is the old name."""
_WORSE = ("rejected_response", "rejected_messages")
"""Columns of ms-swift that hold a worse answer."""
COLUMNS: Mapping[str, Column] = {
    "messages": "objects",
    "tools": "objects",
    "parallel_tool_calls": "flag",
}
"""The column types."""


def claims(row: Row) -> float:
    """Return the confidence that a row is an OpenAI chat; a TRL row looks nearly the same."""
    # Columns of other formats that keep a chat in `messages` too.
    if "messages" not in row or not row.keys().isdisjoint({"state", "chosen", "conversations"}):
        return 0.0
    messages = row["messages"] if isinstance(row["messages"], list) else []
    weighted = any(isinstance(message, Mapping) and "weight" in message for message in messages)
    # 0.8 leaves room for TRL's format to claim more (0.9) or less (0.7); see `trl.py`.
    return 1.0 if weighted or "parallel_tool_calls" in row else 0.8


def parse(row: Row, where: str) -> Iterator[TrajectoryItem]:
    """Yield the items of a conversation."""
    messages = messages_in(row)
    worse = next((name for name in _WORSE if row.get(name)), None)
    if worse is not None:
        return _pair(row, messages, worse, where)
    return chat_items(
        messages,
        row,
        where,
        known=used(row, messages, "messages", *TOOLS),
        # A label that is no truth value is a class name of some other task.
        tag="label" if isinstance(row.get("label"), bool) else TAG,
    )


def chat_items(
    messages: list[dict[str, Any]], row: Row, where: str, *, known: frozenset[str], tag: str
) -> Iterator[TrajectoryItem]:
    """Yield the items of a whole chat, with the reward that the row gives.

    A tag judges the last answer, and so does a number beside a plain dialogue. If an answer calls a
    tool, the row is the episode of an agent, and the number is the score of all its answers.

    Args:
        messages: The chat, with weights.
        row: The row that it is from.
        where: The row's file and line.
        known: Columns that do not go to the metadata, besides the tag.
        tag: The column that says whether the last answer is good.

    Raises:
        DataError: a weight, the tools or the tag is wrong, or an answer tagged as good is empty.
    """
    reward = tag_in(row, tag)
    answers = learned(messages)
    if reward is not None:
        # The tag is about the last answer, so there must be one.
        _check_tagged(messages, tag, reward)
    elif (scored := scalars_in(row).get("reward")) is not None:
        reward, tag = scored, "reward"
    items = list(
        items_of(
            [openai_message(message) for message in messages],
            tools=tools_in(row),
            answers=answers,
            episode_id=where,
            # A tag that was not used as the reward stays readable in the metadata.
            metadata=unset_free(row, known if reward is None else known | {tag}),
        )
    )
    first = len(items) - 1
    if tag == "reward" and any(item.tool_calls for item in items):
        first = 0
    for index, item in enumerate(items):
        yield item if reward is None or index < first else replace(item, reward=reward)


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


def weighted(chat: Conversation) -> list[dict[str, Any]]:
    """Return the messages of a chat; answers that belong to no item get weight 0."""
    answers = set(chat.answers)
    return [
        {**_unweighted(message), "weight": 0}
        # OpenAI trains on every answer without a weight, so those of no item must carry 0.
        if message["role"] == "assistant" and index not in answers
        else _unweighted(message)
        for index, message in enumerate(chat.messages)
    ]


def _pair(
    row: Row, messages: list[dict[str, Any]], worse: str, where: str
) -> Iterator[TrajectoryItem]:
    """Yield the items of a chat's last answer, and of the worse one in its place."""
    if messages[-1]["role"] != "assistant":
        raise DataError(f"messages must end with the answer that is better than {worse}")
    chat: list[Message] = [openai_message(message) for message in messages]
    # ms-swift's pair: the chat ends with the good answer, and a column has the bad one.
    prompt = ChatPrompt(chat[:-1], used(row, messages, "messages"))
    for name, answer, reward in (
        ("messages", chat[-1:], 1.0),
        (worse, answer_in(row[worse], worse), 0.0),
    ):
        if reward and says_nothing(answer[-1]):
            raise DataError("the last of messages is empty, but the row calls it a good answer")
        rest = {**row, "reward": reward}
        yield from answered(prompt, answer, rest, f"{where}:{name}", known=_WORSE)


def _check_tagged(messages: list[dict[str, Any]], tag: str, reward: float) -> None:
    last = messages[-1]
    if last["role"] != "assistant":
        raise DataError(f"{tag} is about the last answer, but the chat ends with {last['role']}")
    if reward and says_nothing(last):
        raise DataError(f"the last answer is empty, but {tag} calls it good")


def _unweighted(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "weight"}


FORMAT = row_format(
    "openai-chat",
    about="OpenAI fine-tuning (messages, tools, weight), 2026",
    survives=_CARRIED,
    rows=Rows(claims=claims, parse=parse, build=build, columns=COLUMNS),
)
