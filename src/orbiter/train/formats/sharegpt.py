"""Reads and writes ShareGPT conversations in the form that LLaMA-Factory reads.

    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}],
     "system": "...", "tools": "[...]"}

A tool call is a turn from `function_call` whose value is JSON, a list if there are several calls.
Results are turns from `observation`, with several results in one turn, since roles must alternate.
Reasoning comes before an answer in `<think>`. Anything else (names, texts next to calls) is stored
in the turn under its name in OpenAI's messages, which other readers ignore.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orbiter.train.chat.conversation import CARRIED, Conversation, conversations, items_of, note
from orbiter.train.chat.message import Message, check_messages, text_of, tools_in
from orbiter.train.chat.tool_calls import (
    arguments_of,
    as_json,
    calls_with_objects,
    calls_with_text,
)
from orbiter.train.errors import DataError
from orbiter.train.formats.format import Built, Row, Rows
from orbiter.train.formats.openai_chat import learned, openai_message, unset_free
from orbiter.train.formats.rows import row_format
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "system": "system",
}
_FROM = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
_OWN = ("from", "value", "weight", "tool_call_ids")


def _claims(row: Row) -> float:
    return 0.97 if "conversations" in row else 0.0


def _parse(row: Row, where: str) -> Iterator[TrajectoryItem]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f"conversations must be a list of objects, got {fields.shown(turns)}")
    messages: list[dict[str, Any]] = []
    if system := row.get("system"):
        messages.append({"role": "system", "content": system})
    ids = _Ids()
    for place, turn in enumerate(turns):
        try:
            messages += _messages(turn, ids)
        except DataError as error:
            raise DataError(f"conversations[{place}]: {error}") from error
    tools = tools_in(row.get("tools"))
    return items_of(
        [openai_message(message) for message in check_messages(messages)],
        tools=[_wrapped(tool) for tool in tools] if tools else None,
        answers=learned(messages),
        episode_id=where,
        metadata=unset_free(row, ("conversations", "system", "tools")),
    )


def _build(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for chat in conversations(items):
        for item in chat.items:
            note(left, item)
        yield Built(_row(chat), len(chat.items))


def _row(chat: Conversation) -> dict[str, Any]:
    row: dict[str, Any] = {"conversations": []}
    if chat.tools:
        row["tools"] = as_json(list(chat.tools))
    start = 0
    if chat.messages and _is_plain_system(chat.messages[0]):
        row["system"] = chat.messages[0]["content"]
        start = 1
    ids, answers = _Ids(), set(chat.answers)
    while start < len(chat.messages):
        end = _end_of_results(chat.messages, start)
        turn = _turn(chat.messages[start:end], ids)
        if chat.messages[start]["role"] == "assistant" and start not in answers:
            turn["weight"] = 0
        row["conversations"].append(turn)
        start = end
    return row


def _is_plain_system(message: Message) -> bool:
    return (
        message.keys() == {"role", "content"}
        and message["role"] == "system"
        and (isinstance(message["content"], str) and bool(message["content"]))
    )


def _end_of_results(messages: Sequence[Message], start: int) -> int:
    """Return the end of the results that can share a turn with the message at `start`."""
    end = start
    while end < len(messages) and _is_plain_result(messages[end]):
        end += 1
    return max(end, start + 1)


def _is_plain_result(message: Message) -> bool:
    known = message.keys() == {"role", "content", "tool_call_id"} and message["role"] == "tool"
    return known and isinstance(message["content"], str) and bool(message["tool_call_id"])


def _turn(messages: Sequence[Message], ids: _Ids) -> dict[str, Any]:
    """Return a message, or the results of several calls, as a turn that is read back unchanged."""
    if len(messages) > 1:
        ids.take(len(messages))
        return {
            "from": "observation",
            "value": as_json([message["content"] for message in messages]),
            "tool_call_ids": [message["tool_call_id"] for message in messages],
        }
    message = _tidy(messages[0])
    calls = message.get("tool_calls") or []
    role = str(message["role"])
    said = as_json(_spoken(calls, ids)) if calls else text_of(message.get("content"))
    thought = message.get("reasoning_content")
    if isinstance(thought, str) and "</think>" not in thought:
        said = f"<think>\n{thought}\n</think>\n\n{said}"
    turn = {"from": "function_call" if calls else _FROM.get(role, role), "value": said}
    (back,) = _messages(turn, ids)
    back = _tidy(back)
    turn.update({key: value for key, value in message.items() if back.get(key) != value})
    turn.update(dict.fromkeys(back.keys() - message.keys(), ""))
    return turn


def _spoken(calls: Sequence[Message], ids: _Ids) -> object:
    spoken = []
    for call, made in zip(calls, ids.coming(len(calls)), strict=True):
        told = call.get("function")
        function = told if isinstance(told, Mapping) else {}
        said = {"name": function.get("name"), "arguments": arguments_of(function.get("arguments"))}
        spoken.append(said if call.get("id") == made else {**said, "id": call.get("id")})
    spoken = [{k: v for k, v in said.items() if v is not None} for said in spoken]
    return spoken if len(spoken) > 1 else spoken[0]


class _Ids:
    """Assigns ids to calls that have none, and matches results with the calls they answer."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[str] = []

    def coming(self, count: int) -> list[str]:
        """Return the ids that the next calls will get."""
        return [f"call_{self._count + index}" for index in range(count)]

    def give(self, calls: list[dict[str, Any]]) -> None:
        """Assign ids to the calls of a turn, which the next results answer in order."""
        for call, made in zip(calls, self.coming(len(calls)), strict=True):
            call.setdefault("id", made)
        self._count += len(calls)
        self._open = [str(call["id"]) for call in calls]

    def take(self, count: int) -> list[str]:
        """Return the ids of the calls that the next results answer."""
        taken, self._open = self._open[:count], self._open[count:]
        return taken


def _messages(turn: Message, ids: _Ids) -> list[dict[str, Any]]:
    """Return the messages of a turn: one, or one per result."""
    if "from" not in turn and "role" in turn:
        return [dict(turn)]
    speaker, value = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str):
        raise DataError(f"from must be a text, got {fields.shown(speaker)}")
    if not isinstance(value, str):
        raise DataError(f"value must be a text, got {fields.shown(value)}")
    several = turn.get("tool_call_ids")
    if speaker == "observation" and isinstance(several, list):
        return _results(value, several, ids)
    message: dict[str, Any] = {"role": _ROLES.get(speaker, speaker), "content": value}
    if message["role"] == "assistant" and (thought := _THOUGHT.match(value)):
        message["reasoning_content"], message["content"] = thought[1], value[thought.end() :]
    if speaker == "function_call":
        message["tool_calls"] = _calls(message["content"], ids)
        message["content"] = None
    if message["role"] == "tool" and (taken := ids.take(1)):
        message["tool_call_id"] = taken[0]
    told = {key: turn[key] for key in turn if key not in _OWN and turn[key] is not None}
    said = {
        key: value for key, value in (message | told).items() if value != "" or key == "content"
    }
    return [said if turn.get("weight") is None else {**said, "weight": turn["weight"]}]


def _results(value: str, several: list[object], ids: _Ids) -> list[dict[str, Any]]:
    contents = decode_json(value)
    ids.take(len(several))
    if not isinstance(contents, list) or len(contents) != len(several):
        raise DataError("value must be a list with a result for each of tool_call_ids")
    return [
        {"role": "tool", "content": content, "tool_call_id": made}
        for content, made in zip(contents, several, strict=True)
    ]


def _calls(value: str, ids: _Ids) -> list[dict[str, Any]]:
    spoken = decode_json(value)
    made = spoken if isinstance(spoken, list) else [spoken]
    if not made or not all(isinstance(call, dict) for call in made):
        raise DataError(f"value must be a call, or a list of calls, got {fields.shown(value)}")
    calls = []
    for call in made:
        named = {"id": call["id"]} if call.get("id") is not None else {}
        function = {key: call[key] for key in ("name", "arguments") if key in call}
        calls.append({**named, "type": "function", "function": function})
    ids.give(calls)
    return calls_with_text(calls)


def _tidy(message: Message) -> dict[str, Any]:
    """Return a message without unset fields, with arguments in normalised JSON."""
    tidy = {key: value for key, value in message.items() if value not in (None, "", [])}
    if calls := tidy.get("tool_calls"):
        tidy["tool_calls"] = calls_with_text(calls_with_objects(calls))
    return tidy


def _wrapped(tool: Message) -> Message:
    """Return a tool in OpenAI's form; LLaMA-Factory's files contain only the function."""
    return tool if "name" not in tool else {"type": "function", "function": tool}


_THOUGHT = re.compile(r"<think>\n(.*?)\n</think>\n\n", re.DOTALL)
FORMAT = row_format(
    "sharegpt",
    about="ShareGPT, as LLaMA-Factory 0.9 reads it",
    survives=CARRIED,
    rows=Rows(
        claims=_claims,
        parse=_parse,
        build=_build,
        columns={"conversations": "objects", "system": "text", "tools": "text"},
    ),
)
