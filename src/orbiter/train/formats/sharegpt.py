"""Reads and writes ShareGPT conversations in the form that LLaMA-Factory reads.

    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}],
     "system": "...", "tools": "[...]"}

A tool call is a turn from `function_call` whose value is JSON, a list if there are several calls.
Results are turns from `observation`. Reasoning comes before an answer in `<think>`. Anything else
(names, texts next to calls) is stored in the turn under its name in OpenAI's messages, which other
readers ignore.

LLaMA-Factory reads a row only if questions (human, observation) and answers (gpt, function_call)
alternate, from a question to an answer. So messages in a row that are of the same kind share a
turn, and messages after the last answer are in a separate column; both are read back as they
were. A conversation that cannot alternate is left out and reported, because LLaMA-Factory would
skip it. Its preference data is read as well: `chosen` and `rejected`, or `kto_tag`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from orbiter.train.chat.conversation import CARRIED, Conversation, conversations, note
from orbiter.train.chat.foreign_calls import OpenCalls
from orbiter.train.chat.message import Message, text_of
from orbiter.train.chat.tool_calls import (
    arguments_of,
    as_json,
    calls_with_objects,
    calls_with_text,
    input_of,
    name_of,
)
from orbiter.train.formats.chats import AFTER, JOINED, RESULT_IDS, TAG, turn_in, turns_in, used
from orbiter.train.formats.format import Built, Row, Rows
from orbiter.train.formats.openai_chat import TOOLS, chat_items
from orbiter.train.formats.rows import row_format
from orbiter.train.formats.trl_preference import SIDES, parse_pair
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

TEXT_BESIDE_CALL = "text beside a call, which LLaMA-Factory does not read"
NOT_TEXT = "content that is not text"
UNWEIGHTED = "weight 0 of an answer, which LLaMA-Factory learns all the same"
_FROM = {"user": "human", "assistant": "gpt", "tool": "observation", "developer": "system"}
_QUESTIONS = ("human", "observation")
_OUT_OF_TURN = {
    "human": "a user turn after a tool result",
    "observation": "a tool result after a user turn",
    **dict.fromkeys(("gpt", "function_call"), "two answers in a row"),
}
"""The problem if a turn follows another of the same kind, by speaker."""


def _claims(row: Row) -> float:
    return 0.97 if "conversations" in row else 0.0


def _parse(row: Row, where: str) -> Iterable[TrajectoryItem]:
    if any(row.get(side) is not None for side in SIDES):
        return parse_pair(row, where)
    messages = turns_in(row)
    known = used(row, messages, "conversations", AFTER, *TOOLS)
    tag = "label" if isinstance(row.get("label"), bool) else TAG
    return chat_items(messages, row, where, known=known, tag=tag)


def _build(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for chat in conversations(items):
        row = _row(chat)
        # Checked on the finished row, because joining turns is what makes most chats alternate.
        if problem := _problem(chat, row["conversations"]):
            _leave_out(left, chat, problem)
            continue
        for item in chat.items:
            note(left, item)
        _note_unread(left, chat)
        yield Built(row, len(chat.items))


def _row(chat: Conversation) -> dict[str, Any]:
    row: dict[str, Any] = {"conversations": []}
    if chat.tools:
        row["tools"] = as_json(list(chat.tools))
    # LLaMA-Factory needs an answer as the last turn.
    end = chat.answers[-1] + 1 if chat.answers else len(chat.messages)
    start = 0
    if _is_plain_system(chat.messages[0]):
        row["system"] = chat.messages[0]["content"]
        # Only a system message without further fields fits into the column.
        start = 1
    calls, answers = OpenCalls(), set(chat.answers)
    while start < end:
        next_start = _end_of_turn(chat.messages[:end], start)
        turn = _turn(chat.messages[start:next_start], calls)
        if chat.messages[start]["role"] == "assistant" and start not in answers:
            # LLaMA-Factory ignores it (see UNWEIGHTED); our reader does not.
            turn["weight"] = 0
        row["conversations"].append(turn)
        start = next_start
    if end < len(chat.messages):
        row[AFTER] = [_without_weight(message) for message in chat.messages[end:]]
    return row


def _problem(chat: Conversation, turns: Sequence[Message]) -> str:
    """Return why LLaMA-Factory would skip a conversation; "" if it reads it."""
    if not chat.answers:
        return "no answer to learn"
    speakers = [turn["from"] for turn in turns]
    # A system message with further fields stays a turn, which LLaMA-Factory accepts only first.
    if speakers and speakers[0] == "system":
        speakers = speakers[1:]
    for index, speaker in enumerate(speakers):
        if speaker == "system":
            return "a system message that is not the first"
        # Its converter's own rule: even turns are questions, odd ones answers.
        if (speaker in _QUESTIONS) != (index % 2 == 0):
            return _OUT_OF_TURN[speaker] if index else "an answer at the beginning"
    return ""


def _leave_out(left: Left, chat: Conversation, problem: str) -> None:
    left[f"items of conversations that LLaMA-Factory skips: {problem}"] += len(chat.items)
    first = chat.items[0]
    episode = "" if first.episode_id is None else f" of episode {first.episode_id}"
    left.details.append(
        f"{problem}: the conversation with {len(chat.items)} items from item {first.id}{episode}"
    )


def _note_unread(left: Left, chat: Conversation) -> None:
    """Count what LLaMA-Factory does not read, although it reads the conversation."""
    answers = set(chat.answers)
    for index, message in enumerate(chat.messages):
        if message.get("tool_calls") and text_of(message.get("content")):
            left[TEXT_BESIDE_CALL] += 1
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            left[NOT_TEXT] += 1
        if message["role"] == "assistant" and index not in answers and index < chat.answers[-1]:
            left[UNWEIGHTED] += 1


def _is_plain_system(message: Message) -> bool:
    return (
        message.keys() == {"role", "content"}
        and message["role"] == "system"
        and (isinstance(message["content"], str) and bool(message["content"]))
    )


def _end_of_turn(messages: Sequence[Message], start: int) -> int:
    """Return the end of the messages that share a turn with the one at `start`."""
    role, end = messages[start]["role"], start + 1
    # Answers are not joined: two in a row are two samples of the model.
    while role in ("user", "tool") and end < len(messages) and messages[end]["role"] == role:
        end += 1
    return end


def _is_plain_result(message: Message) -> bool:
    known = message.keys() == {"role", "content", "tool_call_id"} and message["role"] == "tool"
    return known and isinstance(message["content"], str) and bool(message["tool_call_id"])


def _turn(messages: Sequence[Message], calls: OpenCalls) -> dict[str, Any]:
    """Return messages of one kind as a turn that is read back unchanged."""
    if len(messages) == 1:
        return _single_turn(_tidy(messages[0]), calls)
    texts = [text_of(message.get("content")) for message in messages]
    if messages[0]["role"] == "user":
        joined = [dict(message) for message in messages]
        return {"from": "human", "value": "\n\n".join(texts), JOINED: joined}
    calls.take(len(messages))
    turn: dict[str, Any] = {"from": "observation", "value": as_json(texts)}
    if all(map(_is_plain_result, messages)):
        return turn | {RESULT_IDS: [message["tool_call_id"] for message in messages]}
    return turn | {JOINED: [dict(message) for message in messages]}


def _single_turn(message: dict[str, Any], calls: OpenCalls) -> dict[str, Any]:
    calls_made = message.get("tool_calls") or []
    role = str(message["role"])
    value = (
        as_json(_calls_as_read(calls_made, calls))
        if calls_made
        else text_of(message.get("content"))
    )
    thought = message.get("reasoning_content")
    # With the end mark inside, the text would be cut there when it is read back.
    if isinstance(thought, str) and "</think>" not in thought:
        value = f"<think>\n{thought}\n</think>\n\n{value}"
    turn = {"from": "function_call" if calls_made else _FROM.get(role, role), "value": value}
    # The turn is read back at once, and the differences are stored beside it.
    (back,) = turn_in(turn, calls, "turn")
    back = _tidy(back)
    turn.update({key: value for key, value in message.items() if back.get(key) != value})
    # "" marks a field that reading would invent; `chats.turn_in` drops it.
    turn.update(dict.fromkeys(back.keys() - message.keys(), ""))
    return turn


def _calls_as_read(calls_made: Sequence[Message], calls: OpenCalls) -> object:
    """Return calls as LLaMA-Factory reads them: each with a name and arguments."""
    entries = []
    for call, coming in zip(calls_made, calls.coming(len(calls_made)), strict=True):
        entry = {
            "name": name_of(call) or str(call.get("type") or "tool"),
            "arguments": arguments_of(input_of(call)),
        }
        given = call.get("id")
        # The reader numbers calls by itself, so only another id has to be written.
        entries.append(entry if given is None or given == coming else {**entry, "id": given})
    return entries if len(entries) > 1 else entries[0]


def _tidy(message: Message) -> dict[str, Any]:
    """Return a message without unset fields, with arguments in normalised JSON."""
    tidy = {key: value for key, value in message.items() if value not in (None, "", [])}
    if calls := tidy.get("tool_calls"):
        tidy["tool_calls"] = calls_with_text(calls_with_objects(calls))
    return tidy


def _without_weight(message: Message) -> dict[str, Any]:
    """Return a message that is not to be learned."""
    return {**message, "weight": 0} if message["role"] == "assistant" else dict(message)


FORMAT = row_format(
    "sharegpt",
    about="ShareGPT, as LLaMA-Factory 0.9 reads it",
    survives=CARRIED,
    rows=Rows(
        claims=_claims,
        parse=_parse,
        build=_build,
        columns={
            "conversations": "objects",
            "system": "text",
            "tools": "text",
            AFTER: "objects",
        },
    ),
)
