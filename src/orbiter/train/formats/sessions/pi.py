"""Imports the session logs of Pi and of agents built on it: `~/.pi/agent/sessions/PATH/*.jsonl`.

The first line is about the session; each other line is an entry that names the one before it
(`parentId`), so that the entries form a tree. The last entry is the session's current position.

Not in the logs: the system prompt and the definitions of the tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import function_call
from orbiter.train.errors import DataError
from orbiter.train.formats.sessions.folder import (
    Tally,
    as_object,
    kind_of,
    records_of,
    seconds_of,
    session_format,
)
from orbiter.train.formats.sessions.log import Chat, Facts, LoggedSession, Node, with_plain_text
from orbiter.train.json_files.source import Source

Row = dict[str, Any]


@dataclass(slots=True, eq=False)
class _PiReading:
    """One session while its log is read."""

    session: LoggedSession
    chat: Chat
    tally: Tally
    nodes: dict[str, Node | None] = field(default_factory=dict[str, "Node | None"])
    """For each entry, by id, the last message up to it."""

    def take(self, row: Row) -> None:
        """Process one line.

        Raises:
            DataError: it does not have the form of its type.
        """
        kind = kind_of(row)
        if kind is None:
            raise DataError("not an entry of Pi: it has no type")
        if kind == "session":
            self._begin(row)
            return
        # Before the entry is added: its parent decides where it continues.
        self._go_back(row)
        time = seconds_of(row.get("timestamp"))
        if kind == "message":
            self._add_message(row, time)
        elif kind == "compaction":
            self._compact(row, time)
        elif kind in {"branch_summary", "custom_message"}:
            self._say("user", row.get("summary", row.get("content")), time)
        elif kind in _NOT_CHAT:
            self.tally.known[str(kind)] += 1
        else:
            self.tally.unknown[str(kind)] += 1
        # Also for entries that are no messages, since others may follow them.
        self.nodes[str(row.get("id"))] = self.chat.tail

    def _go_back(self, row: Row) -> None:
        """Continue after this entry's parent; version 1 does not record parents."""
        if "parentId" not in row or not self.nodes:
            return
        parent = row["parentId"]
        # A null parent is the root: the user began again from nothing.
        target = self.nodes.get(str(parent)) if parent is not None else None
        if target is not self.chat.tail:
            self.tally.remarks["times that a user went back to an earlier message"] += 1
            self.chat.go_back(target)

    def _begin(self, row: Row) -> None:
        self.session.identifier = str(row.get("id") or self.session.identifier)
        facts = {"cwd": row.get("cwd"), "forked_from": row.get("parentSession")}
        self.session.facts |= {name: value for name, value in facts.items() if value}

    def _add_message(self, row: Row, time: float | None) -> None:
        message = row.get("message")
        if not isinstance(message, dict):
            raise DataError("an entry of type 'message' has no message")
        role = kind_of(message, "role")
        if role == "assistant":
            identifier = str(message.get("responseId") or row.get("id") or "")
            self.chat.answer(_answer(message), time, _facts(message), identifier or None)
        elif role == "toolResult":
            result: Row = {
                "role": "tool",
                "tool_call_id": str(message.get("toolCallId") or ""),
                "content": _content(message.get("content")),
            }
            if message.get("isError"):
                result["is_error"] = True
            self.chat.result(with_plain_text(result), time)
        # What Pi puts into the context on the user's side, whatever it calls it.
        elif role in {"user", "custom", "hookMessage", "branchSummary", "compactionSummary"}:
            self._say("user", message.get("content", message.get("summary")), time)
        elif role == "bashExecution":
            self._add_command(message, time)
        elif role == "system":
            self._say("system", message.get("content"), time)
        else:
            self.tally.unknown[f"message/{role}"] += 1

    def _add_command(self, message: Row, time: float | None) -> None:
        """Process a command that the user ran, which the model sees as a user message."""
        if message.get("excludeFromContext"):
            self.tally.known["message/bashExecution (outside the context)"] += 1
            return
        text = f"Ran `{message.get('command')}`\n```\n{message.get('output') or ''}\n```"
        if message.get("exitCode"):
            text += f"\nexit code {message['exitCode']}"
        self._say("user", text, time)

    def _compact(self, row: Row, time: float | None) -> None:
        """Replace the context by the summary and the entries that the compaction kept."""
        path = self.chat.tail.path() if self.chat.tail is not None else []
        first = self.nodes.get(str(row.get("firstKeptEntryId")))
        position = next(
            (position for position, node in enumerate(path) if node is first), len(path)
        )
        summary: Message = {"role": "user", "content": str(row.get("summary") or "")}
        self.chat.start_again([summary], time)
        # New nodes with the old messages: the old ones belong to the compacted branch.
        for node in path[position:]:
            self.chat.say(node.message, node.time)

    def _say(self, role: str, content: object, time: float | None) -> None:
        self.chat.say(with_plain_text({"role": role, "content": _content(content)}), time)


def _sessions(sources: Sequence[Source], tally: Tally) -> Iterator[LoggedSession]:
    for source in sources:
        chat = Chat()
        session = LoggedSession(Path(source.path).stem, {"source": "pi"}, [chat])
        reading = _PiReading(session, chat, tally)
        for record in records_of(source, tally):
            try:
                reading.take(record.value)
            except DataError as error:
                source.refuse(record.line, str(error), error)
        yield session


def _answer(message: Mapping[str, Any]) -> Message:
    parts = _content(message.get("content"))
    blocks = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    calls = [
        function_call(block.get("id"), block.get("name"), block.get("arguments"))
        for block in blocks
        if block.get("type") == "toolCall"
    ]
    thoughts = [str(block.get("thinking")) for block in blocks if block.get("type") == "thinking"]
    rest = [block for block in blocks if block.get("type") not in ("toolCall", "thinking")]
    answer: Row = {"role": "assistant", "content": rest or (None if calls else "")}
    if calls:
        answer["tool_calls"] = calls
    if thought := "\n".join(filter(None, thoughts)):
        answer["reasoning_content"] = thought
    return with_plain_text(answer)


def _facts(message: Mapping[str, Any]) -> Facts:
    usage = as_object(message.get("usage"))
    counts = [usage.get(name) for name in ("input", "cacheRead", "cacheWrite")]
    known = [count for count in counts if isinstance(count, int)]
    return {
        "model": message.get("model"),
        "provider": message.get("provider"),
        "finish_reason": message.get("stopReason"),
        "error": message.get("errorMessage"),
        "input_tokens": sum(known) if known else None,
        "cached_tokens": usage.get("cacheRead") or None,
        "output_tokens": usage.get("output"),
    }


def _content(content: object) -> Any:  # noqa: ANN401 - a text or a list of parts
    if not isinstance(content, list):
        return "" if content is None else str(content)
    return [_part(part) for part in content]


def _part(part: object) -> Row:
    if not isinstance(part, dict):
        return {"type": "text", "text": str(part)}
    if part.get("type") == "text":
        return {"type": "text", "text": str(part.get("text") or "")}
    if part.get("type") == "image" and isinstance(data := part.get("data"), str):
        url = f"data:{part.get('mimeType')};base64,{data}"
        return {"type": "image_url", "image_url": {"url": url}}
    return part


def _claims(rows: list[dict[str, Any]]) -> float:
    if not rows or rows[0].get("type") != "session":
        return 0.0
    return 0.95 if {"id", "cwd"} <= rows[0].keys() else 0.0


_NOT_CHAT = frozenset({"custom", "label", "model_change", "session_info", "thinking_level_change"})

FORMAT = session_format(
    "pi",
    about="session logs of Pi (versions 1 to 3) and of agents built on it, such as OpenClaw",
    patterns=["*.jsonl"],
    sessions=_sessions,
    claims=_claims,
    survives=(
        "metadata.cwd",
        "metadata.error",
        "metadata.forked_from",
        "metadata.provider",
    ),
)
