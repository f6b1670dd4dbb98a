"""Imports the sessions of OpenCode: `opencode export SESSION`, or its folder of storage files.

    an export      {"info": session, "messages": [{"info": message, "parts": [part, ...]}, ...]}
    the storage    session/PROJECT/ses_*.json, message/ses_*/msg_*.json, part/msg_*/prt_*.json

The parts of an answer are divided into steps by `step-start`: one step is one call of the model. A
tool part holds the call and its result. A session with a `parentID` is a sub-agent's.

Not in them: the definitions of the tools. Not supported: the database `opencode.db` of newer
versions (export the session).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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

Row = dict[str, Any]


@dataclass(slots=True)
class _Stored:
    """One session: its description, its messages, and the file that each came from."""

    info: Row
    source: Source
    messages: list[tuple[Row, list[Row]]] = field(default_factory=list[tuple[Row, list[Row]]])


@dataclass(slots=True)
class _Store:
    """The content of the files."""

    sessions: dict[str, _Stored] = field(default_factory=dict[str, _Stored])
    messages: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    """The messages in files, by session."""
    parts: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    """The parts in files, by message."""

    def take(self, source: Source, value: Row, tally: Tally) -> None:
        """Process one object of a file.

        Raises:
            DataError: it is not from a session.
        """
        kind = _kind_of(value)
        if kind == "export":
            info = as_object(value["info"])
            pairs = [
                (as_object(entry.get("info")), list(map(as_object, array_in(entry, "parts"))))
                for entry in map(as_object, value["messages"])
            ]
            self.sessions[str(info.get("id"))] = _Stored(info, source, pairs)
        elif kind == "session":
            self.sessions[str(value["id"])] = _Stored(value, source)
        elif kind == "message":
            self.messages.setdefault(str(value["sessionID"]), []).append(value)
        elif kind == "part":
            self.parts.setdefault(str(value["messageID"]), []).append(value)
        elif kind == "event":
            raise DataError(
                "an event of `opencode run --format json`, not a session: "
                "use `opencode export SESSION`"
            )
        else:
            tally.unknown["file with " + ", ".join(sorted(value)[:4])] += 1

    def join(self, source: Source) -> None:
        """Put the messages and parts that are stored in separate files into their sessions."""
        for session_id, rows in self.messages.items():
            holder = self.sessions.setdefault(session_id, _Stored({"id": session_id}, source))
            # The files of a folder come in the order of their names, not of the conversation.
            for row in sorted(rows, key=_by_id):
                below = sorted(self.parts.get(str(row.get("id")), ()), key=_by_id)
                holder.messages.append((row, below))


def _sessions(sources: Sequence[Source], tally: Tally) -> Iterator[LoggedSession]:
    """Yield the sessions in files; those of sub-agents are chats of their parents' sessions."""
    # All files first: a message and its parts may be in any of them.
    store = _Store()
    for source in sources:
        for number, value in objects_of(source, tally):
            try:
                store.take(source, value, tally)
            except DataError as error:
                source.refuse(number, str(error), error)
    store.join(sources[0])
    yield from _joined(store.sessions, tally)


def _by_id(row: Row) -> str:
    return str(row.get("id"))  # ids begin with a time


def _kind_of(value: Mapping[str, Any]) -> str | None:
    if isinstance(value.get("info"), dict) and isinstance(value.get("messages"), list):
        return "export"
    if isinstance(value.get("part"), dict) and "sessionID" in value:
        return "event"
    if {"messageID", "sessionID", "type"} <= value.keys():
        return "part"
    if {"role", "sessionID", "id"} <= value.keys():
        return "message"
    return "session" if str(value.get("id")).startswith("ses_") else None


def _joined(stored: Mapping[str, _Stored], tally: Tally) -> Iterator[LoggedSession]:
    """Read each session, and put the chats of sub-agents into the sessions of their parents."""
    calls: dict[str, str] = {}
    sessions = {
        session_id: _session_of(session_id, holder, calls, tally)
        for session_id, holder in stored.items()
    }
    # Only after all were read, because a sub-agent's file may come before its parent's.
    for session_id in stored:
        chat, root = sessions[session_id].chats[0], _root_of(session_id, stored)
        if session_id in calls:
            chat.facts["parent_tool_call_id"] = calls[session_id]
        if root != session_id:
            sessions[root].chats.append(chat)
    yield from (
        session
        for session_id, session in sessions.items()
        if _root_of(session_id, stored) == session_id
    )


def _session_of(
    session_id: str, holder: _Stored, calls: dict[str, str], tally: Tally
) -> LoggedSession:
    """Read one session; note which calls started sub-agents, by the sessions of these."""
    facts: Facts = {"source": "opencode"}
    for name, entry in (("directory", "cwd"), ("version", "version")):
        if holder.info.get(name):
            facts[entry] = holder.info[name]
    chat = Chat(agent=f"agent-{session_id}" if holder.info.get("parentID") else None)
    for message, parts in holder.messages:
        try:
            _take(chat, message, parts, calls, tally)
        except DataError as error:
            holder.source.refuse(1, f"message {message.get('id')!r}: {error}", error)
    return LoggedSession(session_id, facts, [chat])


def _root_of(session_id: str, stored: Mapping[str, _Stored]) -> str:
    """Return the session of the main agent, as far as its ancestors are among the files."""
    seen = {session_id}
    while (parent := str(stored[session_id].info.get("parentID") or "")) in stored:
        # Damaged files may name each other as parents.
        if parent in seen:
            break
        seen.add(parent)
        session_id = parent
    return session_id


def _take(
    chat: Chat, message: Row, parts: Sequence[Row], calls: dict[str, str], tally: Tally
) -> None:
    time = seconds_of(as_object(message.get("time")).get("created"))
    if message.get("role") == "user":
        _add_prompt(chat, parts, time, tally)
    elif message.get("role") == "assistant":
        # The session only says that it is a sub-agent's; its messages name the agent.
        if chat.agent is not None and isinstance(agent := message.get("agent"), str):
            chat.agent = agent
        _add_answer(chat, message, parts, calls, tally)
    else:
        raise DataError(f"field 'role': expected user or assistant, got {message.get('role')!r}")


def _add_prompt(chat: Chat, parts: Sequence[Row], time: float | None, tally: Tally) -> None:
    content = [entry for part in parts if (entry := _content_of(part)) is not None]
    for part in parts:
        if (kind := kind_of(part)) not in _READ:
            counter = tally.known if kind in _NOT_CHAT else tally.unknown
            counter[f"part/{kind}"] += 1
    if content:
        chat.say(with_plain_text({"role": "user", "content": content}), time)


def _add_answer(
    chat: Chat, message: Row, parts: Sequence[Row], calls: dict[str, str], tally: Tally
) -> None:
    """Append an answer for each step, with the results of its calls after it."""
    times, finish = as_object(message.get("time")), message.get("finish")
    failed = as_object(message.get("error"))
    steps = _steps(parts)
    for number, step in enumerate(steps):
        answer, results, facts = _step_of(step, tally)
        # A step that failed, or held nothing but thoughts.
        if not answer.get("content") and "tool_calls" not in answer:
            if failed:
                tally.remarks["errors of the API, whose calls have no answer"] += 1
            continue
        facts = {
            "model": message.get("modelID"),
            "provider": message.get("providerID"),
            "finish_reason": finish if number == len(steps) - 1 else None,
            "error": failed.get("name") if failed and number == len(steps) - 1 else None,
            # The message counts all its steps together, so with several it says nothing about one.
            **(_usage(message) if len(steps) == 1 else {}),
            **facts,
        }
        time = seconds_of(_begun(step) or times.get("created"))
        identifier = f"{message.get('id')}/{number}" if message.get("id") else None
        answered = chat.answer(with_plain_text(answer), time, facts, identifier)
        if message.get("summary") is True:
            # A summary replaces the context, after the request that asked for it.
            request = answered.node.parent.message if answered.node.parent is not None else None
            kept = [answered.node.message] if request is None else [request, answered.node.message]
            chat.start_again(kept, time)
        for part in results:
            _add_result(chat, part, calls)


def _steps(parts: Sequence[Row]) -> list[list[Row]]:
    """Divide the parts of an answer at each start of a step."""
    steps: list[list[Row]] = [[]]
    for part in parts:
        # A start without content before it, such as the first, opens no further step.
        if part.get("type") == "step-start" and any(
            earlier.get("type") in ("text", "tool", "reasoning") for earlier in steps[-1]
        ):
            steps.append([])
        steps[-1].append(part)
    return steps


def _step_of(parts: Sequence[Row], tally: Tally) -> tuple[Row, list[Row], Facts]:
    """Return the answer of one step, its tool parts, and the facts in its end marker."""
    tools = [part for part in parts if part.get("type") == "tool"]
    thoughts = [str(part.get("text") or "") for part in parts if part.get("type") == "reasoning"]
    content = [entry for part in parts if (entry := _content_of(part)) is not None]
    facts: Facts = {}
    for part in parts:
        kind = kind_of(part)
        if kind == "step-finish":
            facts = _usage(part) | ({"finish_reason": part["reason"]} if "reason" in part else {})
        elif kind not in _READ:
            counter = tally.known if kind in _NOT_CHAT else tally.unknown
            counter[f"part/{kind}"] += 1
    answer: Row = {"role": "assistant", "content": content or (None if tools else "")}
    if tools:
        answer["tool_calls"] = [
            function_call(
                part.get("callID"), part.get("tool"), as_object(part.get("state")).get("input")
            )
            for part in tools
        ]
    if thought := "\n".join(filter(None, thoughts)):
        answer["reasoning_content"] = thought
    return answer, tools, facts


def _content_of(part: Row) -> Message | None:
    """Return a part as content; None if it is not content, or not for the model."""
    kind = part.get("type")
    if kind == "text" and part.get("text") and not part.get("ignored"):
        return {"type": "text", "text": str(part["text"])}
    if kind == "file":
        return _file(part)
    if kind == "compaction":  # OpenCode asks this in its place
        return {"type": "text", "text": "What did we do so far?"}
    return None


def _add_result(chat: Chat, part: Row, calls: dict[str, str]) -> None:
    state = as_object(part.get("state"))
    times, status = as_object(state.get("time")), kind_of(state, "status")
    call_id = str(part.get("callID") or "")
    metadata = as_object(state.get("metadata"))
    if isinstance(below := metadata.get("sessionId", metadata.get("sessionID")), str):
        # The tool that starts a sub-agent returns the id of its session.
        calls[below] = call_id
    if status not in {"completed", "error"}:
        return  # the session ended before the tool did
    output = state.get("error") if status == "error" else state.get("output")
    attached = [_file(as_object(file)) for file in array_in(state, "attachments")]
    content: object = as_text(output)
    if attached:
        content = [{"type": "text", "text": content}, *attached]
    message: Row = {"role": "tool", "tool_call_id": call_id, "content": content}
    if status == "error":
        message["is_error"] = True
    begun, ended = seconds_of(times.get("start")), seconds_of(times.get("end"))
    known = begun is not None and ended is not None
    run = {
        "seconds": round((ended or 0) - (begun or 0), 6) if known else None,
        "error": as_text(output)[:200] if status == "error" else None,
    }
    chat.result(message, ended, run)


def _begun(parts: Sequence[Row]) -> object:
    """Return the time at which the first part of a step that has one began."""
    times = (
        as_object(part.get("time")).get("start")
        for part in parts
        if part.get("type") in ("text", "reasoning")
    )
    return next(filter(None, times), None)


def _usage(holder: Row) -> Facts:
    tokens = as_object(holder.get("tokens"))
    cache = as_object(tokens.get("cache"))
    counts = [tokens.get("input"), cache.get("read"), cache.get("write")]
    known = [count for count in counts if isinstance(count, int)]
    facts = {
        "input_tokens": sum(known) if known else None,
        "cached_tokens": cache.get("read") or None,
        "output_tokens": tokens.get("output"),
        "reasoning_tokens": tokens.get("reasoning") or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _file(part: Row) -> Message:
    kind, url = str(part.get("mime") or ""), part.get("url")
    if kind.startswith("image/") and isinstance(url, str):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": part.get("filename"), "url": url}}


def _claims(rows: list[dict[str, Any]]) -> float:
    if not rows:
        return 0.0
    first = rows[0]
    exported = as_object(first.get("info"))
    if str(exported.get("id")).startswith("ses_"):
        return 0.95
    stored = _kind_of(first) in {"session", "message", "part"}
    return 0.9 if stored and any(str(first.get(name)).startswith("ses_") for name in _IDS) else 0.0


_IDS = ("id", "sessionID")
_READ = frozenset({"compaction", "file", "reasoning", "step-finish", "step-start", "text", "tool"})
_NOT_CHAT = frozenset({"agent", "patch", "retry", "snapshot", "subtask"})
"""Types of parts that are not content of a message."""

FORMAT = session_format(
    "opencode",
    about="sessions of OpenCode (1.0 to 1.2): an export, or the folder of its storage files",
    patterns=["*.json"],
    sessions=_sessions,
    claims=_claims,
    survives=(
        "metadata.cwd",
        "metadata.error",
        "metadata.parent_tool_call_id",
        "metadata.provider",
        "metadata.reasoning_tokens",
        "metadata.version",
    ),
)
