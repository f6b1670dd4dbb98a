"""Writes items as trajectories of the Agent Trajectory Interchange Format (ATIF) 1.7.

A file holds one trajectory (`.json`), an array of them, or one per line (`.jsonl`). Every message,
call, result, token and time goes to its field of the format. Whatever would not be read back
exactly is stored in `extra` as well, so nothing is lost. Not here: reading (`atif_read.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orbiter.train.chat.conversation import Conversation, answer_of, conversations, prompt_of
from orbiter.train.chat.message import Message, check_messages, text_of
from orbiter.train.chat.tool_calls import arguments_of
from orbiter.train.errors import DataError
from orbiter.train.formats.atif_read import (
    OURS,
    SOURCES,
    call_of,
    detect,
    items_in,
    message_of,
    read,
    result_of,
)
from orbiter.train.formats.format import ExportReport, Format
from orbiter.train.json_files import fields
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import NAMES, values_of

VERSION = "ATIF-v1.7"

Step = dict[str, Any]


def write(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
    """Write items as trajectories: one per line, or one document if the suffix is `.json`.

    Raises:
        StorageError: the file cannot be written; the previous file is unchanged.
    """
    # The suffix decides between one document and lines; readers of ATIF go by it as well.
    lines = path.suffix != ".json"
    written = 0
    with atomic_write(path) as file:
        remaining = trajectories(items)
        following = next(remaining, None)
        several = False
        while following is not None:
            trajectory, count = following
            following = next(remaining, None)
            if not lines:
                file.write(b",\n" if several else b"[\n" if following is not None else b"")
            several = several or following is not None
            file.write(fields.encode(trajectory) + (b"\n" if lines else b""))
            written += count
        if not lines:
            file.write(b"\n]\n" if several else b"\n")
    return ExportReport(written, {}, path)


def trajectories(items: Iterable[TrajectoryItem]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield one trajectory per conversation, with the number of items in it.

    An item whose `messages` are not a valid chat gets a separate trajectory, with its state as the
    user's message and its messages in `extra`.
    """
    # Filled while `conversations` consumes the items, so it is complete only after that loop.
    odd: list[TrajectoryItem] = []
    for chat in conversations(_chats(items, odd)):
        yield _trajectory(chat.messages, dict(_by_answer(chat))), len(chat.items)
    for item in odd:
        prompt = {"role": "user", "content": item.state}
        yield _trajectory([prompt, answer_of(item)], {1: item}), 1


def _chats(items: Iterable[TrajectoryItem], odd: list[TrajectoryItem]) -> Iterator[TrajectoryItem]:
    for item in items:
        try:
            check_messages(prompt_of(item))
        except DataError:
            odd.append(item)
        else:
            yield item


def _by_answer(chat: Conversation) -> Iterator[tuple[int, TrajectoryItem]]:
    """Yield each item with its answer's index; an unanswered prompt first gets an empty answer."""
    if chat.answers:
        yield from zip(chat.answers, chat.items, strict=True)
    else:
        # ATIF has no prompt without an answer, so the item gets an empty one.
        chat.messages.append(answer_of(chat.items[0]))
        yield len(chat.messages) - 1, chat.items[0]


def _trajectory(messages: Sequence[Message | Any], items: Mapping[int, TrajectoryItem]) -> Step:
    first = next(iter(items.values()))
    agent: Step = {"name": first.agent or "agent", "version": "unknown"}
    # The format has one list of tools for the whole trajectory. If the items differ, each keeps its
    # own in `extra`, by `_keep_the_rest`.
    if first.tools is not None and all(items[index].tools == first.tools for index in items):
        agent["tool_definitions"] = list(first.tools)
    trajectory: Step = {
        "schema_version": VERSION,
        "session_id": first.episode_id or first.id,
        "trajectory_id": first.id,
        "agent": agent,
        "steps": list(_steps(messages, items)),
        "extra": {OURS: {}},
    }
    if first.task_id is not None:
        trajectory["extra"]["task_id"] = first.task_id
    _keep_the_rest(trajectory, list(items.values()))
    return trajectory


def _steps(messages: Sequence[Message], items: Mapping[int, TrajectoryItem]) -> Iterator[Step]:
    step: Step = {}
    number = 0
    for index, message in enumerate(messages):
        # Results belong to the step that made the calls: they are its observation.
        if message.get("role") == "tool" and step.get("source") == "agent":
            # A result may only name a call of its own step; others keep their id in `extra`.
            call_ids = {call["tool_call_id"] for call in step.get("tool_calls", ())}
            result = _result(message, call_ids)
            step.setdefault("observation", {"results": []})["results"].append(result)
            continue
        if step:
            yield step
        number += 1
        step = {"step_id": number, **_step(message)}
        if (item := items.get(index)) is not None:
            _add_facts(step, item)
        # An answer of the history that belongs to no item: the reader must not make one of it.
        elif step["source"] == "agent":
            step["is_copied_context"] = True
    yield step


def _step(message: Message) -> Step:
    """Return a message as a step; `extra` keeps the whole message if the step loses part of it."""
    roles = {role: source for source, role in SOURCES.items()}
    source = roles.get(str(message.get("role")), "user")
    content = message.get("content")
    step: Step = {"source": source, "message": _content(content)}
    if source == "agent":
        if isinstance(calls := message.get("tool_calls"), list) and calls:
            step["tool_calls"] = [_call(call) for call in calls]
        if isinstance(thought := message.get("reasoning_content"), str):
            step["reasoning_content"] = thought
    return _keep_message(step, message, message_of(step))


def _result(message: Message, call_ids: Set[str]) -> Step:
    """Return a tool's message as a result; it may name only a call made in the same step."""
    result: Step = {"content": _content(message.get("content"))}
    if isinstance(call := message.get("tool_call_id"), str) and call in call_ids:
        result["source_call_id"] = call
    return _keep_message(result, message, result_of(result))


def _call(call: object) -> Step:
    call_fields = call if isinstance(call, Mapping) else {}
    inner = call_fields.get("function")
    function = inner if isinstance(inner, Mapping) else {}
    arguments = arguments_of(function.get("arguments"))
    converted: Step = {
        "tool_call_id": str(call_fields.get("id") or ""),
        "function_name": str(function.get("name") or ""),
        # The format only allows an object here; any other text is kept in `extra` below.
        "arguments": arguments if isinstance(arguments, dict) else {},
    }
    text = function.get("arguments")
    # Spacing, key order and duplicate keys of the model's text do not survive as an object.
    if isinstance(text, str) and call_of(converted)["function"]["arguments"] != text:
        converted["extra"] = {OURS: {"arguments": text}}
    return converted


def _content(content: object) -> str | list[Any]:
    """Return content as the format accepts it: text, or a list of text and image parts."""
    if isinstance(content, list) and content and all(map(_is_part, content)):
        # Only parts that the format's schema allows; a list with anything else becomes its text
        # here, and the whole message goes to `extra`.
        return content
    return text_of(content)


def _is_part(part: object) -> bool:
    if not isinstance(part, Mapping):
        return False
    if part.keys() == {"type", "text"}:
        return part["type"] == "text" and isinstance(part["text"], str)
    source = part.get("source")
    return (
        part.keys() == {"type", "source"}
        and part["type"] == "image"
        and isinstance(source, Mapping)
        and source.keys() == {"media_type", "path"}
        and source["media_type"] in _IMAGES
        and isinstance(source["path"], str)
    )


def _add_facts(step: Step, item: TrajectoryItem) -> None:
    """Copy an item's time, model, tokens and reward to the fields of its step."""
    # `datetime` knows no later year; such a time is kept in `extra` as a number.
    if item.timestamp is not None and 0 <= item.timestamp < _YEAR_9999:
        step["timestamp"] = datetime.fromtimestamp(item.timestamp, UTC).isoformat()
    if isinstance(model := item.metadata.get("model"), str):
        step["model_name"] = model
    metrics = {
        "prompt_token_ids": item.prompt_token_ids,
        "completion_token_ids": item.token_ids,
        "logprobs": item.logprobs,
    }
    if given := {name: list(value) for name, value in metrics.items() if value is not None}:
        step["metrics"] = given
    if item.reward is not None:
        step.setdefault("extra", {})["reward"] = item.reward


def _keep_message(holder: Step, message: Message, read: Message) -> Step:
    if not _same(read, message):
        holder["extra"] = {OURS: {"message": dict(message)}}
    return holder


def _keep_the_rest(trajectory: Step, items: Sequence[TrajectoryItem]) -> None:
    """Read the trajectory back, and store in `extra` the fields that changed."""
    # The test of what was lost is the reader itself, so that the two cannot drift apart.
    answer_steps = [step for step in trajectory["steps"] if _is_answer(step)]
    for step, item, read_item in zip(answer_steps, items, items_in(trajectory), strict=True):
        pairs = zip(NAMES, values_of(item), values_of(read_item), strict=True)
        if kept := {name: value for name, value, other in pairs if not _same(value, other)}:
            step.setdefault("extra", {}).setdefault(OURS, {})["item"] = kept


def _is_answer(step: Step) -> bool:
    return step["source"] == "agent" and "is_copied_context" not in step


def _same(left: object, right: object) -> bool:
    # By their JSON, because 1 == True and 1 == 1.0 in Python.
    return fields.encode_sorted(left) == fields.encode_sorted(right)


_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_YEAR_9999 = 253_370_764_800.0

FORMAT = Format(
    name="atif",
    about="Agent Trajectory Interchange Format: reads 1.4 to 1.8, writes 1.7",
    suffixes=(".json", ".jsonl"),
    survives=frozenset(NAMES),
    detect=detect,
    read=read,
    write=write,
)
