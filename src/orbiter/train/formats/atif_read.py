"""Reads trajectories of the Agent Trajectory Interchange Format (ATIF) 1.4 to 1.8 as items.

A step of the agent becomes an item, unless it is context copied from elsewhere or was made without
a model (`llm_call_count` 0): then it is only part of the chat that later steps saw. Data that this
package stored in `extra` is restored from there. Not here: writing, and the format's entry in the
table of formats (`atif.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.chat.parts import as_text
from orbiter.train.chat.tool_calls import as_json
from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Source, reason_of
from orbiter.train.json_files.walk import objects_in
from orbiter.train.tracing.recorded import Recorder
from orbiter.train.tracing.times import time_of
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import NAMES

VERSIONS = tuple(f"ATIF-v1.{minor}" for minor in range(9))
"""The versions that are read; 1.0 to 1.3 are 1.4 without a few fields."""
OURS = "orbiter_train"
"""The entry of `extra` that holds data for which the format has no field."""
SOURCES = {"system": "system", "user": "user", "agent": "assistant"}
"""The source of a step, and the role of its message."""

Trajectory = Mapping[str, Any]


def read(source: Source) -> Iterator[TrajectoryItem]:
    """Yield the items of all trajectories in a file.

    Raises:
        DataError: a trajectory is wrong; the message names the line where it begins and the field.
    """
    for line, trajectory in objects_in(source):
        try:
            yield from items_in(trajectory)
        except (DataError, RecursionError) as error:
            source.refuse(line, reason_of(error), error)


def detect(head: bytes, path: Path) -> float:  # noqa: ARG001 - the content says it
    """Return the confidence, from 0 to 1, that a file with this head holds trajectories."""
    return 1.0 if _VERSION.search(head) else 0.0


def items_in(trajectory: Trajectory) -> Iterator[TrajectoryItem]:
    """Yield the items of a trajectory, then those of the sub-agents' trajectories within it.

    Raises:
        DataError: a field does not match the format; the message names it.
    """
    # Older versions are accepted too; the message names those that the documentation promises.
    version = trajectory.get("schema_version")
    if version not in VERSIONS:
        raise DataError(
            f"field 'schema_version': expected one of {VERSIONS[4]} to {VERSIONS[-1]}, got "
            f"{fields.shown(version)}"
        )
    yield from _items(trajectory)
    for number, inner in enumerate(_objects(trajectory, "subagent_trajectories", "")):
        try:
            # A sub-agent's trajectory may leave the version out; then it has that of the outer one.
            yield from items_in({"schema_version": version, **inner})
        except DataError as error:
            raise DataError(f"subagent_trajectories[{number}]: {error}") from error


def message_of(step: Mapping[str, Any]) -> Message:
    """Return the message of a step."""
    # Our own writer keeps a message whole if the step's fields would change it.
    if (kept := _ours(step).get("message")) is not None:
        return dict(kept) if isinstance(kept, Mapping) else {}
    source = step.get("source")
    if not isinstance(source, str) or source not in SOURCES:
        raise DataError(
            f"field 'source': expected system, user or agent, got {fields.shown(source)}"
        )
    content = step.get("message", "")
    if not isinstance(content, str | list):
        raise DataError(f"field 'message': expected text or parts, got {fields.shown(content)}")
    message: dict[str, Any] = {"role": SOURCES[source], "content": content}
    if calls := [call_of(call) for call in _objects(step, "tool_calls", "")]:
        # OpenAI's form: an answer of calls alone has the content null, not "".
        message["content"] = content or None
        message["tool_calls"] = calls
    if isinstance(thought := step.get("reasoning_content"), str):
        message["reasoning_content"] = thought
    return message


def call_of(call: Mapping[str, Any]) -> Message:
    """Return a tool call in OpenAI's form."""
    text = _ours(call).get("arguments")
    arguments = call.get("arguments", {})
    function = {
        "name": as_text(call.get("function_name")),
        "arguments": text if isinstance(text, str) else as_json(arguments),
    }
    return {"id": as_text(call.get("tool_call_id")), "type": "function", "function": function}


def result_of(result: Mapping[str, Any]) -> Message:
    """Return one result of an observation as a message, from the tool or the environment."""
    if isinstance(kept := _ours(result).get("message"), Mapping):
        return dict(kept)
    raw = result.get("content")
    text = raw if isinstance(raw, str | list) else as_text(raw)
    call = result.get("source_call_id")
    if isinstance(call, str):
        return {"role": "tool", "tool_call_id": call, "content": text}
    # A result that names no call is an observation of the environment, such as a terminal's.
    return {"role": "user", "content": text}


def _items(trajectory: Trajectory) -> Iterator[TrajectoryItem]:
    agent = _object(trajectory, "agent")
    known = {
        "episode_id": trajectory.get("session_id") or trajectory.get("trajectory_id"),
        "task_id": _object(trajectory, "extra").get("task_id"),
        "agent": agent.get("name"),
        "tools": _objects(agent, "tool_definitions", "agent.") or None,
    }
    score = _score(trajectory)
    steps = _objects(trajectory, "steps", "")
    recorder, chat, count = Recorder(), list[Message](), 0
    # The facts about the whole trajectory go to its last item, where a reward belongs.
    last = max((index for index, step in enumerate(steps) if _is_item(step)), default=-1)
    for index, step in enumerate(steps):
        try:
            message = message_of(step)
            if _is_item(step):
                root = _root_entries(trajectory) if index == last else {}
                item = _item(recorder, chat, step, {**known, "step": count}, root, score=score)
                yield _restored(item, _ours(step).get("item"))
                count += 1
            # A new list each time, because the items before hold on to the old one.
            chat = [*chat, message, *map(result_of, _results(step))]
        except DataError as error:
            raise DataError(f"steps[{index}]: {error}") from error


def _item(
    recorder: Recorder,
    chat: Sequence[Message],
    step: Mapping[str, Any],
    known: Mapping[str, Any],
    root: Mapping[str, Any],
    *,
    score: object,
) -> TrajectoryItem:
    """Return the item of a step; the trajectory's score counts for steps without their own."""
    metrics = _object(step, "metrics")
    extra = {key: value for key, value in _object(step, "extra").items() if key != OURS}
    tokens = metrics.get("completion_token_ids")
    entries: dict[str, Any] = {
        "model": step.get("model_name"),
        "reasoning_effort": step.get("reasoning_effort"),
        "usage": {key: metrics[key] for key in metrics if key not in _TOKENS},
        "extra": {key: value for key, value in extra.items() if key != "reward"},
        **root,
    }
    logprobs = metrics.get("logprobs")
    count = len(tokens) if isinstance(tokens, list) else 0
    # An item needs one for each token; a shorter list cannot be assigned to tokens.
    whole = isinstance(logprobs, list) and len(logprobs) == count
    return recorder.item(
        chat,
        message_of(step),
        {key: value for key, value in entries.items() if value not in (None, {})},
        reward=extra.get("reward", score),
        timestamp=time_of(step.get("timestamp")),
        prompt_token_ids=metrics.get("prompt_token_ids"),
        token_ids=tokens,
        logprobs=logprobs if whole else None,
        **known,
    )


def _restored(item: TrajectoryItem, kept: object) -> TrajectoryItem:
    """Return an item with the fields that were stored for it in `extra`."""
    if not isinstance(kept, Mapping):
        return item
    return replace(item, **{name: kept[name] for name in NAMES if name in kept})


def _is_item(step: Mapping[str, Any]) -> bool:
    return (
        step.get("source") == "agent"
        and step.get("is_copied_context") is not True
        and step.get("llm_call_count") != 0
    )


def _score(trajectory: Trajectory) -> object:
    """Return the reward of a whole trajectory; None in our own files, whose steps have theirs."""
    extra, metrics = _object(trajectory, "extra"), _object(trajectory, "final_metrics")
    if OURS in extra:
        return None
    return extra.get("reward", _object(metrics, "extra").get("reward"))


def _root_entries(trajectory: Trajectory) -> dict[str, Any]:
    """Return the metadata of the whole trajectory, which goes to its last item."""
    agent, extra = _object(trajectory, "agent"), _object(trajectory, "extra")
    metrics = _object(trajectory, "final_metrics")
    entries = {
        "id": trajectory.get("trajectory_id"),
        "agent_version": agent.get("version"),
        "model": agent.get("model_name"),
        "agent_extra": agent.get("extra"),
        "notes": trajectory.get("notes"),
        "final_metrics": metrics,
        "continued": trajectory.get("continued_trajectory_ref"),
        "reward": _score(trajectory),
        "extra": {key: value for key, value in extra.items() if key not in _ROOT_FIELDS},
    }
    # Our own files: all this is in the items already.
    if OURS in extra:
        return {}
    return {"trajectory": {key: value for key, value in entries.items() if value not in (None, {})}}


def _results(step: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _objects(_object(step, "observation"), "results", "observation.")


def _ours(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    extra = holder.get("extra")
    ours = extra.get(OURS) if isinstance(extra, Mapping) else None
    return ours if isinstance(ours, Mapping) else {}


def _object(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = holder.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise DataError(f"field {name!r}: expected an object, got {fields.shown(value)}")
    return value or {}


def _objects(holder: Mapping[str, Any], name: str, below: str) -> list[Mapping[str, Any]]:
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        got = fields.shown(value)
        raise DataError(f"field {below + name!r}: expected a list of objects, got {got}")
    return value


_VERSION = re.compile(rb'"schema_version"\s*:\s*"ATIF-v1\.')
_TOKENS = frozenset({"prompt_token_ids", "completion_token_ids", "logprobs"})
_ROOT_FIELDS = frozenset({"task_id", "reward", OURS})
