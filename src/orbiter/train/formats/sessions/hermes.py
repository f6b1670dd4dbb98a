"""Imports the session logs of Hermes: `~/.hermes/sessions/*.jsonl` and `session_*.json`.

Both hold messages in OpenAI's form. The lines begin with one of role `session_meta`, which has the
tools; the JSON document has `system_prompt`, `tools` and `messages`. The trajectories that Hermes
exports for training are ShareGPT (`sharegpt`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orbiter.train.chat.dialects import message_from, tools_from
from orbiter.train.errors import DataError
from orbiter.train.formats.sessions.folder import (
    Tally,
    as_object,
    kind_of,
    objects_of,
    seconds_of,
    session_format,
)
from orbiter.train.formats.sessions.log import Chat, Facts, LoggedSession
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Source


def _sessions(sources: Sequence[Source], tally: Tally) -> Iterator[LoggedSession]:
    for source in sources:
        chat = Chat()
        session = LoggedSession(Path(source.path).stem, {"source": "hermes"}, [chat])
        for line, value in objects_of(source, tally):
            try:
                _take(session, chat, value, tally)
            except DataError as error:
                source.refuse(line, str(error), error)
        yield session


def _take(session: LoggedSession, chat: Chat, value: Mapping[str, Any], tally: Tally) -> None:
    if isinstance(messages := value.get("messages"), list):
        _begin(session, chat, value)
        for message in messages:
            _add_message(session, chat, as_object(message), tally)
    elif value.get("role") == "session_meta":
        _begin(session, chat, value)
    elif isinstance(value.get("role"), str):
        _add_message(session, chat, value, tally)
    elif "conversations" in value:
        raise DataError("a trajectory of Hermes, not a session log: its format is 'sharegpt'")
    else:
        raise DataError(f"not a message of Hermes: it has no role, got {fields.shown(value)}")


def _begin(session: LoggedSession, chat: Chat, about: Mapping[str, Any]) -> None:
    session.identifier = str(about.get("session_id") or session.identifier)
    if isinstance(platform := about.get("platform"), str) and platform:
        session.facts["platform"] = platform
    if isinstance(model := about.get("model"), str) and model:
        session.facts["model"] = model
    chat.tools = tools_from(about.get("tools"))
    if isinstance(prompt := about.get("system_prompt"), str) and prompt:
        chat.say({"role": "system", "content": prompt})


def _add_message(
    session: LoggedSession, chat: Chat, given: Mapping[str, Any], tally: Tally
) -> None:
    role, time = kind_of(given, "role"), seconds_of(given.get("timestamp"))
    if role == "session_meta":
        _begin(session, chat, given)
        return
    if role not in {"system", "user", "assistant", "tool"}:
        tally.unknown[f"message/{role}"] += 1
        return
    # The other fields are the log's own, not part of what the model saw.
    plain = {name: value for name, value in given.items() if name in _MESSAGE}
    for message in message_from(plain, role=str(role)):
        if role == "assistant":
            facts: Facts = {
                "finish_reason": given.get("finish_reason"),
                "output_tokens": given.get("token_count"),
                "model": given.get("model"),
            }
            chat.answer(message, time, facts)
        elif role == "tool":
            chat.result(message, time)
        else:
            chat.say(message, time)


def _claims(rows: list[dict[str, Any]]) -> float:
    if not rows:
        return 0.0
    if rows[0].get("role") == "session_meta":
        return 0.95
    return 0.9 if {"session_id", "messages", "platform"} <= rows[0].keys() else 0.0


_MESSAGE = frozenset(
    {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning", "reasoning_content"}
)

FORMAT = session_format(
    "hermes",
    about="session logs of Hermes Agent (2026), lines or a JSON document",
    patterns=["*.jsonl", "session_*.json"],
    sessions=_sessions,
    claims=_claims,
    survives=("metadata.platform",),
)
