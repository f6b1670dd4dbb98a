"""Imports the session logs of Gemini CLI: `~/.gemini/tmp/PROJECT/chats/session-TIME-ID.json(l)`.

A log is one JSON document with `messages`, or since 2026 JSON lines: a line about the session, then
one line per message; a repeated id replaces the message, `{"$rewindTo": ID}` removes a message and
all after it, and `{"$set": {...}}` changes the session, and with `messages` all of them. A message
of type `gemini` holds the calls and, in each call, its result. The logs of sub-agents are in a
folder with the id of their session.

Not in the logs: the system prompt and the definitions of the tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from orbiter.train.chat.message import Message
from orbiter.train.chat.parts import as_text
from orbiter.train.chat.tool_calls import function_call
from orbiter.train.errors import DataError
from orbiter.train.formats.sessions.folder import (
    Tally,
    array_in,
    as_object,
    kind_of,
    objects_of,
    seconds_of,
    session_format,
)
from orbiter.train.formats.sessions.log import Chat, Facts, LoggedSession, with_plain_text
from orbiter.train.json_files.source import Source


class _Line(NamedTuple):
    """A message of the log and where it is."""

    number: int
    value: Mapping[str, Any]


def _sessions(sources: Sequence[Source], tally: Tally) -> Iterator[LoggedSession]:
    """Yield one session for each log of a main agent, with those of its sub-agents."""
    logs = [_read(source, tally) for source in sources]
    # By the folder's name: a sub-agent's file is in a folder named after its session.
    mains = {session.identifier: session for session, _ in logs if not session.chats[0].agent}
    calls = {
        str(run["agent_id"]): run["tool_call_id"]
        for session, _ in logs
        for answer in session.chats[0].answers
        for run in answer.runs.values()
        if "agent_id" in run
    }
    for session, source in logs:
        chat = session.chats[0]
        main = mains.get(Path(source.path).parent.name)
        if chat.agent is None:
            continue
        if session.identifier in calls:
            chat.facts["parent_tool_call_id"] = calls[session.identifier]
        if main is not None:
            main.chats.append(chat)
    for session, source in logs:
        # A sub-agent whose main log is missing is a session by itself.
        if session.chats[0].agent is None or Path(source.path).parent.name not in mains:
            yield session


@dataclass(slots=True)
class _Log:
    """A log while it is read."""

    about: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[str, _Line] = field(default_factory=dict[str, _Line])
    """The messages by id."""
    compactions: int = 0

    def take(self, number: int, value: Mapping[str, Any], tally: Tally) -> None:
        """Process one object of the file.

        Raises:
            DataError: it is from a file of another kind.
        """
        if "$set" in value:
            self._change(number, as_object(value["$set"]))
        elif "$rewindTo" in value:
            tally.remarks["times that a user went back to an earlier message"] += 1
            self._rewind(str(value["$rewindTo"]))
        elif "sessionId" in value:
            self._change(number, value)
        elif "type" in value:
            self.lines[str(value.get("id") or f"line {number}")] = _Line(number, value)
        elif {"role", "parts"} <= value.keys():
            raise DataError("a checkpoint of Gemini CLI, not a session: see its folder 'chats'")
        else:
            tally.unknown["object with " + (", ".join(sorted(value)) or "no field")] += 1

    def _change(self, number: int, changes: Mapping[str, Any]) -> None:
        """Process facts about the session; messages among them replace the earlier messages."""
        if isinstance(messages := changes.get("messages"), list):
            # The first list of messages is the session itself and replaces nothing.
            self.compactions += bool(self.lines)
            self.lines = _by_id(number, messages)
        self.about |= {name: value for name, value in changes.items() if name != "messages"}

    def _rewind(self, identifier: str) -> None:
        """Remove a message and all after it; all messages if no message has that id."""
        names = list(self.lines)
        for name in names[names.index(identifier) if identifier in self.lines else 0 :]:
            del self.lines[name]


def _read(source: Source, tally: Tally) -> tuple[LoggedSession, Source]:
    log = _Log()
    for number, value in objects_of(source, tally):
        try:
            log.take(number, value, tally)
        except DataError as error:
            source.refuse(number, str(error), error)
    identifier = str(log.about.get("sessionId") or Path(source.path).stem)
    chat = Chat(agent=f"agent-{identifier}" if log.about.get("kind") == "subagent" else None)
    chat.compactions = log.compactions
    facts: Facts = {"source": "gemini-cli"}
    if log.about.get("projectHash"):
        facts["project"] = log.about["projectHash"]
    # Only now, because a later line may have changed or removed any message.
    for line in log.lines.values():
        try:
            _take(chat, line.value, tally)
        except DataError as error:
            source.refuse(line.number, str(error), error)
    return LoggedSession(identifier, facts, [chat]), source


def _by_id(number: int, messages: Sequence[object]) -> dict[str, _Line]:
    lines = {}
    for position, message in enumerate(messages):
        value = as_object(message)
        lines[str(value.get("id") or f"line {number}, message {position}")] = _Line(number, value)
    return lines


def _take(chat: Chat, message: Mapping[str, Any], tally: Tally) -> None:
    kind, time = kind_of(message), seconds_of(message.get("timestamp"))
    if kind == "user":
        content = _parts(message.get("content"))
        chat.say(with_plain_text({"role": "user", "content": content}), time)
    elif kind == "gemini":
        _add_answer(chat, message, time)
    elif kind in {"info", "error", "warning"}:
        tally.known[str(kind)] += 1
    else:
        tally.unknown[str(kind)] += 1


def _add_answer(chat: Chat, message: Mapping[str, Any], time: float | None) -> None:
    calls = [as_object(call) for call in array_in(message, "toolCalls")]
    content = _parts(message.get("content"))
    answer = dict(with_plain_text({"role": "assistant", "content": content}))
    if calls:
        # OpenAI's form: null, not "", beside calls.
        answer["content"] = answer["content"] or None
        answer["tool_calls"] = [
            function_call(call.get("id"), call.get("name"), call.get("args")) for call in calls
        ]
    thoughts = [as_object(thought) for thought in array_in(message, "thoughts")]
    words = [
        "\n".join(str(thought[name]) for name in ("subject", "description") if thought.get(name))
        for thought in thoughts
    ]
    if thought := "\n".join(filter(None, words)):
        answer["reasoning_content"] = thought
    tokens = as_object(message.get("tokens"))
    facts = {"model": message.get("model")} | {
        entry: tokens.get(name) for name, entry in _USAGE.items()
    }
    identifier = message.get("id")
    chat.answer(answer, time, facts, str(identifier) if identifier else None)
    for call in calls:
        _add_result(chat, call)


def _add_result(chat: Chat, call: Mapping[str, Any]) -> None:
    # A failed or cancelled call has a status in place of a result.
    if call.get("result") is None and call.get("status") not in ("error", "cancelled"):
        return  # the session ended before the tool did
    content, failed = _result(call.get("result"))
    status = kind_of(call, "status")
    message: dict[str, Any] = {
        "role": "tool",
        "tool_call_id": str(call.get("id") or ""),
        "content": content,
    }
    if failed or status in {"error", "cancelled"}:
        message["is_error"] = True
    run = {
        "agent_id": call.get("agentId"),
        "error": str(status) if status in {"error", "cancelled"} else None,
    }
    chat.result(message, seconds_of(call.get("timestamp")), run)


def _result(result: object) -> tuple[object, bool]:
    """Return the content of a call's result, and whether it is an error."""
    parts = result if isinstance(result, list) else [result] if result is not None else []
    content: list[Any] = []
    failed = False
    for part in parts:
        response = as_object(as_object(part).get("functionResponse")).get("response")
        if isinstance(response, dict):
            failed = failed or "error" in response
            # Gemini wraps a text into an object; only the text was the tool's.
            output = response.get("error", response.get("output", response))
            content.append({"type": "text", "text": as_text(output)})
        else:
            content += _parts(part)
    message: Message = with_plain_text({"content": content})
    return message["content"] or "", failed


def _parts(content: object) -> Any:  # noqa: ANN401 - a text or a list of parts
    """Return content in OpenAI's form: Gemini's parts have no type."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    return [_part(part) for part in parts]


def _part(part: object) -> dict[str, Any]:
    if not isinstance(part, dict):
        return {"type": "text", "text": str(part)}
    if isinstance(text := part.get("text"), str) and not part.get("thought"):
        return {"type": "text", "text": text}
    if data := as_object(part.get("inlineData")):
        url = f"data:{data.get('mimeType')};base64,{data.get('data')}"
        if str(data.get("mimeType")).startswith("image/"):
            return {"type": "image_url", "image_url": {"url": url}}
    # An unknown kind of part has one field, whose name says what it is.
    return {"type": next(iter(part), "part"), **part}


def _claims(rows: list[dict[str, Any]]) -> float:
    if not rows:
        return 0.0
    first = rows[0]
    if {"sessionId", "projectHash"} <= first.keys():
        return 0.95
    typed = [row for row in rows if row.get("type") == "gemini" and "timestamp" in row]
    return 0.8 if typed else 0.0


_USAGE = {
    "input": "input_tokens",
    "cached": "cached_tokens",
    "output": "output_tokens",
    "thoughts": "reasoning_tokens",
}

FORMAT = session_format(
    "gemini-cli",
    about="session logs of Gemini CLI (JSON, and JSON lines since 2026), a file or a folder",
    patterns=["session-*.json", "session-*.jsonl", "chats/*.jsonl", "chats/*/*.jsonl"],
    sessions=_sessions,
    claims=_claims,
    survives=(
        "metadata.parent_tool_call_id",
        "metadata.project",
        "metadata.reasoning_tokens",
    ),
)
