"""Reads the chat in a row of a data file, and its answers, whichever columns hold them.

    messages                              OpenAI's form, Anthropic's blocks, ms-swift's roles
    conversations, system                 ShareGPT's turns
    instruction, input, history, system   Alpaca's columns
    prompt                                messages, or a text; also with the turns of hh-rlhf in it

Not here: what a role or a block means (`chat/normalise.py`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from orbiter.train.chat.conversation import items_of
from orbiter.train.chat.foreign_calls import OpenCalls, calls_in, normal_tools
from orbiter.train.chat.message import Message
from orbiter.train.chat.normalise import CALL, normal_messages, role_of
from orbiter.train.chat.tool_calls import calls_with_text
from orbiter.train.errors import DataError
from orbiter.train.formats.format import Column, Row
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import OPTIONAL

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
TAG = "kto_tag"
"""The column in which LLaMA-Factory stores whether an answer is good."""
_TEXT_PROMPTS = ("prompt", "question", "query")
"""Columns that hold a whole prompt; `prompt` may also be messages."""
_CHECKS: Mapping[str, Callable[[str, object], object]] = {
    "reward": fields.number,
    **{name: OPTIONAL[name] for name in SCALARS if name in OPTIONAL},
}


class ChatPrompt(NamedTuple):
    """The chat in a row, and where it was found."""

    messages: Sequence[Message]
    columns: frozenset[str]
    """The columns that it came from; the others go to the metadata."""
    is_text: bool = False
    """Whether it was a text, so that answers may repeat it as messages."""


def openai_message(message: Message) -> dict[str, Any]:
    """Return a message as items store it: OpenAI tool calls, no weight, no unset fields."""
    # Content may be null beside calls; every other null is an unset field, such as a table's empty
    # cell.
    kept = {key: value for key, value in message.items() if key == "content" or value is not None}
    kept.pop("weight", None)
    if calls := kept.pop("tool_calls", None):
        kept["tool_calls"] = calls_with_text(cast("list[Message]", calls))
    return kept


def unset_free(row: Row, known: Container[str]) -> dict[str, Any]:
    """Return the columns that are set and not in `known`; they go to the metadata."""
    return {key: value for key, value in row.items() if key not in known and value is not None}


def learned(messages: Sequence[Message]) -> frozenset[int]:
    """Return the indices of the messages that are to be learned.

    Raises:
        DataError: a weight is neither 0 nor 1.
    """
    for index, message in enumerate(messages):
        if (weight := message.get("weight")) not in (None, 0, 1):
            raise DataError(f"messages[{index}]: weight must be 0 or 1, got {weight!r}")
    return frozenset(index for index, message in enumerate(messages) if message.get("weight") != 0)


def chat_in(value: object, name: str) -> list[Message]:
    """Return the messages in a column: a chat, or a text, which becomes one user message.

    Raises:
        DataError: it is neither; the message names the column.
    """
    # A plain text prompt is what the user said.
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [openai_message(message) for message in normal_messages(value, name)]


def prompt_in(row: Row) -> ChatPrompt | None:
    """Return the chat of a row, from the first of its columns that holds one; None if none does.

    Raises:
        DataError: a column holds something else; the message names it.
    """
    # A separate prompt wins over a chat in `messages`, which may hold the answer as well.
    for name in _TEXT_PROMPTS:
        if (given := row.get(name)) is not None and (name == "prompt" or isinstance(given, str)):
            is_text = isinstance(given, str)
            # A text may be a whole dialogue in the form of hh-rlhf; only the prompt up to the
            # answer.
            messages = (dialogue_in(given) if is_text else []) or chat_in(given, name)
            messages = [*_system_in(row, messages), *messages]
            return ChatPrompt(messages, used(row, messages, name), is_text)
    if row.get("messages") is not None:
        messages = [openai_message(message) for message in messages_in(row)]
        return ChatPrompt(messages, used(row, messages, "messages"))
    if row.get("conversations") is not None:
        messages = [openai_message(message) for message in turns_in(row)]
        return ChatPrompt(messages, used(row, messages, "conversations", AFTER))
    if row.get("instruction") is not None or isinstance(row.get("input"), str):
        return ChatPrompt(alpaca_in(row), ALPACA)
    return None


def messages_in(row: Row) -> list[dict[str, Any]]:
    """Return the messages of a row, with its system text, if that is in a column, at the front.

    Raises:
        DataError: they are not a chat.
    """
    messages = normal_messages(row.get("messages"))
    return [*_system_in(row, messages), *messages]


def turns_in(row: Row) -> list[dict[str, Any]]:
    """Return ShareGPT's turns in a row as messages, the system text at the front.

    Raises:
        DataError: a turn is wrong, or its speaker is unknown; the message names it.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f"conversations must be a list of objects, got {fields.shown(turns)}")
    if not turns:
        raise DataError("conversations is empty: expected at least one turn")
    messages: list[dict[str, Any]] = []
    calls = OpenCalls()
    for index, turn in enumerate(turns):
        messages += turn_in(turn, calls, f"conversations[{index}]")
    # Only our own writer has this column: messages after the last answer, which ShareGPT cannot
    # hold.
    if isinstance(after := row.get(AFTER), list):
        messages += after
    checked = normal_messages(messages, "conversations")
    return [*_system_in(row, checked), *checked]


def turn_in(turn: Message, calls: OpenCalls, name: str) -> list[dict[str, Any]]:
    """Return the messages of a ShareGPT turn: one, or one per result, or the joined ones.

    Raises:
        DataError: the turn is wrong; the message begins with `name`.
    """
    if "from" not in turn and "role" in turn:
        return [dict(turn)]  # already a message: some files mix both forms
    value = turn.get("value", turn.get("content"))
    if "from" not in turn:
        raise DataError(f"{name} must have a speaker in 'from', got {fields.shown(turn)}")
    role = role_of(turn["from"], name)
    if not isinstance(value, str):
        raise DataError(f"{name}: value must be a text, got {fields.shown(value)}")
    if role in ("user", "tool") and (several := _several(turn, role, value, calls, name)):
        return several
    message: dict[str, Any] = {"role": role, "content": value}
    # Only at the beginning and with these line breaks, as LLaMA-Factory writes reasoning. Other
    # "<think>" is text of the answer.
    if role in ("assistant", CALL) and (thought := THOUGHT.match(value)):
        message["reasoning_content"], message["content"] = thought[1], value[thought.end() :]
    if role == CALL:
        calls_made = calls_in(message["content"], f"{name}.value")
        # ShareGPT's calls and results have no ids. Calls get numbers, and the results that follow
        # take them in the same order.
        calls.give(calls_made)
        message |= {"role": "assistant", "content": None, "tool_calls": calls_with_text(calls_made)}
    if role == "tool" and (call_ids := calls.take()):
        message["tool_call_id"] = call_ids[0]
    # Fields that ShareGPT does not have were stored in the turn under their own names.
    kept = {key: turn[key] for key in turn if key not in _TURN and turn[key] is not None}
    # Our writer marks a field that the message does not have by "" (see `sharegpt.py`).
    result = {
        key: value for key, value in (message | kept).items() if value != "" or key == "content"
    }
    return [result if turn.get("weight") is None else {**result, "weight": turn["weight"]}]


def _several(
    turn: Message, role: str, value: str, calls: OpenCalls, name: str
) -> list[dict[str, Any]]:
    """Return the messages that share a turn; empty if the turn is one message."""
    joined, ids = turn.get(JOINED), turn.get(RESULT_IDS)
    if isinstance(joined, list):
        # The results have their ids already; the numbers only have to be used up.
        calls.take(len(joined) if role == "tool" else 0)
        return [dict(message) for message in joined if isinstance(message, Mapping)]
    if role == "tool" and isinstance(ids, list):
        return _results(value, ids, calls, name)
    return []


def alpaca_in(row: Row) -> list[Message]:
    """Return the prompt of a row with Alpaca's columns.

    Raises:
        DataError: a column is not a text, or the history is not a list of pairs of texts.
    """
    texts = [row.get(name) or "" for name in ("instruction", "input")]
    for name, text in zip(("instruction", "input"), texts, strict=True):
        if not isinstance(text, str):
            raise DataError(f"{name} must be a text, got {fields.shown(text)}")
    if not any(texts):
        raise DataError("instruction is empty")
    history = row.get("history") or ()
    if not isinstance(history, list | tuple):
        raise DataError(f"history must be a list of pairs, got {fields.shown(history)}")
    messages: list[Message] = []
    for index, pair in enumerate(history):
        if not _is_pair(pair):
            raise DataError(
                f"history[{index}] must be a question and an answer, got {fields.shown(pair)}"
            )
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    # LLaMA-Factory joins the two with one line break, and leaves an empty one out.
    messages.append({"role": "user", "content": "\n".join(filter(None, texts))})
    return [*_system_in(row, messages), *messages]


def dialogue_in(text: str) -> list[Message]:
    """Return the turns of a text in the form of hh-rlhf; empty if it is not in that form.

    The form is `Human: What is 2 + 3?`, an empty line, `Assistant: 5`, an empty line, and so on.

    A prompt in that form ends with an empty turn of the assistant, which is left out.
    """
    marks = list(_DIALOGUE.finditer(text))
    # A text that merely mentions "Human:" somewhere is not a dialogue.
    if not marks or text[: marks[0].start()].strip() or marks[0][1] != "Human":
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns: list[Message] = [
        {"role": _DIALOGUE_ROLES[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
    # The empty turn asks the model to speak; the answer is in another column.
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def answer_in(value: object, name: str, *, is_good: bool = False) -> list[Message]:
    """Return an answer in a column: a text, a message (also a ShareGPT turn), or messages.

    Args:
        value: The column.
        name: Its name.
        is_good: Whether the row calls the answer good, so that it must say something.

    Raises:
        DataError: it is anything else, has no answer of the assistant, or should not be empty.
    """
    messages: list[Message]
    if isinstance(value, Mapping):
        turn = turn_in(value, OpenCalls(), name)
        messages = [openai_message(message) for message in normal_messages(turn, name)]
    elif isinstance(value, str):
        messages = [{"role": "assistant", "content": value}]
    else:
        messages = chat_in(value, name)
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{name} holds no answer of the assistant, got {fields.shown(value)}")
    if is_good and says_nothing(messages[-1]):
        raise DataError(f"{name} is empty, but the row calls it a good answer")
    return messages


def says_nothing(message: Message) -> bool:
    """Return whether a message of the assistant has no content, calls or reasoning."""
    return message["role"] == "assistant" and not any(message.get(key) for key in _SAYING)


def answered(
    prompt: ChatPrompt, answer: Sequence[Message], row: Row, where: str, known: Container[str] = ()
) -> list[TrajectoryItem]:
    """Return the items of a prompt and its answer, with the values of the row's other columns.

    Args:
        prompt: The chat before the answer.
        answer: The messages that are the answer; every one of the assistant makes an item.
        row: The row.
        where: The row's file and line, which names the episode if there are several items.
        known: Columns that do not go to the metadata, besides those of the prompt.

    Raises:
        DataError: an item cannot hold a value.
    """
    start = len(prompt.messages)
    scalars = scalars_in(row)
    used = {*prompt.columns, *scalars, "tools", "functions"}
    rest = {key: value for key, value in row.items() if key not in known}
    items = list(
        items_of(
            [*prompt.messages, *answer],
            tools=tools_in(row),
            answers=range(start, start + len(answer)),
            episode_id=where,
            metadata=unset_free(rest, used),
        )
    )
    if len(items) > 1:
        # Before the items are replaced, or all would get the row's one step.
        scalars.pop("step", None)  # each item's step is its position in the row
    return [replace(item, **scalars) for item in items]


def used(row: Row, messages: Sequence[Message], *columns: str) -> frozenset[str]:
    """Return the columns that a chat was read from, including `system` if its text was used."""
    first = messages[0]
    # A chat with a system message of its own leaves the column unused: it goes to the metadata.
    is_in_chat = first["role"] == "system" and first["content"] == row.get("system")
    return frozenset((*columns, "system") if is_in_chat else columns)


def tools_in(row: Row) -> list[Message] | None:
    """Return the tools on offer in a row; the column `functions` is their old name.

    Raises:
        DataError: they are not a list of tools.
    """
    # `functions` is the name in OpenAI's files before tools existed.
    return normal_tools(row.get("tools")) or normal_tools(row.get("functions"), "functions")


def tag_in(row: Row, name: str = TAG) -> float | None:
    """Return the reward that a row's tag gives to its answer; None if there is no tag.

    Raises:
        DataError: the tag is neither true nor false.
    """
    tag = row.get(name)
    if tag is None:
        return None
    # 1 and "true" would be guesses about another tool's meaning.
    if not isinstance(tag, bool):
        raise DataError(f"{name} must be true or false, got {fields.shown(tag)}")
    return float(tag)


def _system_in(row: Row, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the message of a row's `system` column, unless the chat begins with one."""
    system = row.get("system")
    if not isinstance(system, str | list) or not system or messages[0].get("role") == "system":
        return []
    return normal_messages([{"role": "system", "content": system}], "system")


def scalars_in(row: Row) -> dict[str, Any]:
    """Return the item fields in a row's columns, without columns whose value is invalid."""
    values: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        if row.get(name) is not None:
            # A column of that name with another meaning, such as a reward in words, is metadata.
            with contextlib.suppress(DataError):
                values[name] = check(name, row[name])
    return values


def _results(
    value: str, several: list[object], calls: OpenCalls, name: str
) -> list[dict[str, Any]]:
    try:
        contents = decode_json(value)
    except DataError as error:
        raise DataError(f"{name}: value must be a list of results: {error}") from error
    calls.take(len(several))
    if not isinstance(contents, list) or len(contents) != len(several):
        raise DataError(f"{name}: value must be a list with a result for each of tool_call_ids")
    return [
        {"role": "tool", "content": content, "tool_call_id": call_id}
        for content, call_id in zip(contents, several, strict=True)
    ]


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(text, str) for text in value)
    )


ALPACA = frozenset({"instruction", "input", "history", "system"})
"""The columns of Alpaca's prompts."""
AFTER = "messages_after"
"""The column of messages that follow a conversation's last answer."""
JOINED = "joined_messages"
"""The field of a turn that holds the messages of which the turn is made."""
RESULT_IDS = "tool_call_ids"
"""The field of a turn that names the calls whose results are in it."""
THOUGHT = re.compile(r"<think>\n(.*?)\n</think>\n\n", re.DOTALL)
_TURN = ("from", "value", "weight", RESULT_IDS, JOINED)
_DIALOGUE = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}
_SAYING = ("content", "tool_calls", "reasoning_content", "refusal", "audio")
