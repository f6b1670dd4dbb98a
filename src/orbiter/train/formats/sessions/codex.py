"""Imports the session logs of Codex: `~/.codex/sessions/YYYY/MM/DD/rollout-TIME-ID.jsonl`.

Each line is `{"timestamp", "type", "payload"}`. The payloads of type `response_item` are the items
of the Responses API, in order; those of type `event_msg` repeat them for display, and say how many
tokens a response took. Logs of 2025 (until 0.31) have the items themselves on their lines.

Not in the logs: the definitions of the tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.formats.sessions.codex_items import (
    call_of,
    list_in,
    output_of,
    part_of,
    thoughts_of,
)
from orbiter.train.formats.sessions.folder import (
    Tally,
    as_object,
    kind_of,
    records_of,
    seconds_of,
    session_format,
)
from orbiter.train.formats.sessions.log import (
    Chat,
    Facts,
    LoggedAnswer,
    LoggedSession,
    Node,
    with_plain_text,
)
from orbiter.train.json_files.records import decode_object
from orbiter.train.json_files.source import Source


@dataclass(slots=True, eq=False)
class _CodexReading:
    """One thread while its log is read."""

    chat: Chat
    session: LoggedSession
    tally: Tally
    open: LoggedAnswer | None = None
    """The answer that further items of the same response belong to."""
    thoughts: list[str] = field(default_factory=list[str])
    """Thoughts whose response has had no other item yet."""
    turns: list[Node | None] = field(default_factory=list["Node | None"])
    """For each message of the user, the last message before it."""
    context: Facts = field(default_factory=Facts)
    """The model and reasoning effort that the current turn's context names."""
    parent: str | None = None
    """The thread that started this one, if it is a sub-agent's."""

    def take(self, row: Mapping[str, Any]) -> None:
        """Process one line.

        Raises:
            DataError: it does not have the form of its type.
        """
        kind, time = kind_of(row), seconds_of(row.get("timestamp"))
        payload = row.get("payload")
        # The order matters: a payload has a type as well, but the line's type decides.
        if isinstance(payload, dict):
            self._add_payload(str(kind), payload, time)
        elif kind in _ITEMS:
            self._add_item(row, time)
        # The first line of the logs of 2025.
        elif "id" in row and "timestamp" in row and "type" not in row:
            self._begin(row)
        elif "record_type" in row:
            self.tally.known[str(row["record_type"])] += 1
        elif kind is None:
            raise DataError("not a record of Codex: it has no type")
        else:
            self.tally.unknown[str(kind)] += 1

    def _add_payload(self, kind: str, payload: Mapping[str, Any], time: float | None) -> None:
        if kind == "session_meta":
            self._begin(payload)
        elif kind == "response_item":
            self._add_item(payload, time)
        elif kind == "turn_context":
            given = {"model": payload.get("model"), "reasoning_effort": payload.get("effort")}
            self.context |= {name: value for name, value in given.items() if value}
        elif kind == "compacted":
            self._compact(payload, time)
        elif kind == "event_msg":
            self._add_event(payload)
        elif kind in _NOT_CHAT:
            self.tally.known[kind] += 1
        else:
            self.tally.unknown[kind] += 1

    def _begin(self, meta: Mapping[str, Any]) -> None:
        """Process a session's description; a forked session repeats that of its parent."""
        # Only the first description is this session's own.
        if "cwd" in self.session.facts or self.chat.tail is not None:
            self.tally.known["session_meta of a parent"] += 1
            return
        self.session.identifier = str(meta.get("id") or self.session.identifier)
        facts = {
            "cwd": meta.get("cwd"),
            "version": meta.get("cli_version"),
            "git_branch": as_object(meta.get("git")).get("branch"),
            "provider": meta.get("model_provider"),
            "forked_from": meta.get("forked_from_id"),
        }
        self.session.facts |= {name: value for name, value in facts.items() if value}
        spawn = as_object(
            as_object(as_object(meta.get("source")).get("subagent")).get("thread_spawn")
        )
        if as_object(meta.get("source")).get("subagent"):
            self.parent = str(spawn.get("parent_thread_id") or meta.get("forked_from_id") or "")
            name = spawn.get("agent_role") or spawn.get("agent_nickname")
            self.chat.agent = str(name or f"agent-{self.session.identifier}")
            self.chat.facts["agent_id"] = self.session.identifier
        instructions = as_object(meta.get("base_instructions")).get("text") or meta.get(
            "instructions"
        )
        if isinstance(instructions, str) and instructions:
            self.chat.say({"role": "system", "content": instructions})

    def _add_item(self, item: Mapping[str, Any], time: float | None) -> None:
        kind = str(item.get("type"))
        if kind == "message":
            self._add_message(item, time)
        elif kind == "reasoning":
            # Held back until the answer that they led to appears.
            self.thoughts += thoughts_of(item)
        # After a result, further items are another response of the model.
        elif kind in {"function_call_output", "custom_tool_call_output"}:
            self.open = None
            self._add_result(item, time)
        elif (call := call_of(kind, item)) is not None:
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            self._extend(message, time, str(call["id"]))
        elif kind in _ITEMS or kind.endswith(("_output", "_call_result")):
            self.tally.known[f"response_item/{kind}"] += 1
        else:
            self.tally.unknown[f"response_item/{kind}"] += 1

    def _add_message(self, item: Mapping[str, Any], time: float | None) -> None:
        role = item.get("role")
        message: Message = with_plain_text(
            {"role": role, "content": [part_of(part) for part in list_in(item, "content")]}
        )
        if role == "assistant":
            self._extend(message, time, item.get("id"))
            return
        if not isinstance(role, str):
            raise DataError("a message has no role")
        self.open = None
        if role == "user":
            # A rollback counts the user's turns, so the place before each is remembered.
            self.turns.append(self.chat.tail)
        self.chat.say(message, time)

    def _extend(self, message: Message, time: float | None, identifier: object) -> None:
        """Add text or a call to the answer of the current response, or begin a new answer.

        The identifier is the same in the log of a thread that was forked from this one.
        """
        # The first item of a response may have no id, and a later one does.
        if self.open is not None and self.open.identifier is None and identifier:
            self.open.identifier = str(identifier)
        thoughts, self.thoughts = "\n".join(self.thoughts), []
        if self.open is None:
            if thoughts:
                message = {**message, "reasoning_content": thoughts}
            named = str(identifier) if identifier else None
            self.open = self.chat.answer(message, time, dict(self.context), named)
            return
        # Text and calls of one response are separate items here, and one message in OpenAI's form.
        known = self.open.node.message
        texts = [part for part in (known.get("content"), message.get("content")) if part]
        merged = dict(known)
        if texts:
            whole = all(isinstance(text, str) for text in texts)
            merged["content"] = (
                "\n".join(texts)
                if whole
                else [
                    part
                    for text in texts
                    for part in (
                        text if isinstance(text, list) else [{"type": "text", "text": text}]
                    )
                ]
            )
        if calls := [*(known.get("tool_calls") or ()), *(message.get("tool_calls") or ())]:
            merged["tool_calls"] = calls
        if before := list(filter(None, [known.get("reasoning_content"), thoughts])):
            merged["reasoning_content"] = "\n".join(before)
        self.open.node.message = merged
        self.chat.note_calls(self.open)

    def _add_result(self, item: Mapping[str, Any], time: float | None) -> None:
        output, run = output_of(item.get("output"))
        message = {
            "role": "tool",
            "tool_call_id": str(item.get("call_id") or ""),
            "content": output,
        }
        if run.get("error"):
            message["is_error"] = True
        self.chat.result(message, time, run)

    def _add_event(self, event: Mapping[str, Any]) -> None:
        kind = str(event.get("type"))
        if kind == "token_count":
            usage = as_object(as_object(event.get("info")).get("last_token_usage"))
            if usage and self.chat.answers:
                # The event comes after the items of the response that it counts.
                self.chat.answers[-1].facts |= {
                    entry: usage.get(name) for name, entry in _USAGE.items()
                }
            self.open = None  # token counts mark the end of a response
        elif kind == "thread_rolled_back":
            count = event.get("num_turns")
            if isinstance(count, int) and 0 < count <= len(self.turns):
                self.tally.remarks["times that a user went back to an earlier message"] += 1
                self.open = None
                self.chat.go_back(self.turns[-count])
                # The turns that were undone cannot be counted by the next rollback.
                del self.turns[-count:]
        elif kind == "turn_aborted":
            if self.chat.answers:
                self.chat.answers[-1].facts["interrupted"] = True
            self.open = None
        elif kind in {"error", "stream_error"}:
            self.tally.remarks["errors of the API, whose calls have no answer"] += 1
        elif kind not in _EVENTS:
            self.tally.unknown[f"event_msg/{kind}"] += 1

    def _compact(self, payload: Mapping[str, Any], time: float | None) -> None:
        """Replace the context by the history that the log gives, or by the summary."""
        self.open, self.turns = None, []
        # Older logs only have the summary; newer ones have the whole new context.
        history = payload.get("replacement_history")
        if not isinstance(history, list):
            message = {"role": "user", "content": str(payload.get("message") or "")}
            path = self.chat.tail.path() if self.chat.tail is not None else []
            # The instructions stay: Codex sends them with every request.
            first = [node.message for node in path[:1] if node.message.get("role") == "system"]
            self.chat.start_again([*first, message], time)
            return
        self.chat.start_again()
        for item in history:
            if isinstance(item, dict) and item.get("type") == "message":
                parts = [part_of(part) for part in list_in(item, "content")]
                self.chat.say(with_plain_text({"role": item.get("role"), "content": parts}), time)
            else:
                self.tally.known["response_item/compaction (encrypted)"] += 1


def _sessions(sources: Sequence[Source], tally: Tally) -> Iterator[LoggedSession]:
    """Yield one session for each file; the threads of sub-agents join that of their parent."""
    children: dict[str, list[Source]] = {}
    roots: list[Source] = []
    for source in sources:
        parent = _parent_of(source)
        (roots if parent is None else children.setdefault(parent, [])).append(source)
    for source in roots:
        reading = _read(source, tally)
        session = reading.session
        # Sub-agents may have sub-agents; all their chats join the root's session.
        waiting = [session.identifier]
        while waiting:
            for child in children.pop(waiting.pop(), ()):
                below = _read(child, tally)
                session.chats += below.session.chats
                waiting.append(below.session.identifier)
        yield session
    for orphans in children.values():  # their parents are not among the files
        yield from (_read(orphan, tally).session for orphan in orphans)


def _read(source: Source, tally: Tally) -> _CodexReading:
    chat = Chat()
    session = LoggedSession(Path(source.path).stem, {"source": "codex"}, [chat])
    reading = _CodexReading(chat, session, tally)
    for record in records_of(source, tally):
        try:
            reading.take(record.value)
        except DataError as error:
            source.refuse(record.line, str(error), error)
    return reading


def _parent_of(source: Source) -> str | None:
    """Return the thread that started the one in a file; None if a user did."""
    with source.open() as file:
        try:
            meta = as_object(decode_object(file.readline()).get("payload"))
        except DataError:
            return None
    subagent = as_object(meta.get("source")).get("subagent")
    spawn = as_object(as_object(subagent).get("thread_spawn"))
    parent = spawn.get("parent_thread_id") or (subagent and meta.get("forked_from_id"))
    return str(parent) if parent else None


def _claims(rows: list[dict[str, Any]]) -> float:
    if not rows:
        return 0.0
    first = rows[0]
    if isinstance(first.get("payload"), dict):
        return (
            0.95 if first.get("type") in ("session_meta", "response_item", "turn_context") else 0.0
        )
    # 2025's logs have no payloads, only a first line with these three and items.
    old = {"id", "timestamp", "instructions"} <= first.keys()
    return 0.9 if old and all("type" in row or "record_type" in row for row in rows[1:]) else 0.0


_USAGE = {
    "input_tokens": "input_tokens",
    "cached_input_tokens": "cached_tokens",
    "output_tokens": "output_tokens",
    "reasoning_output_tokens": "reasoning_tokens",
}
_ITEMS = frozenset(
    {
        "additional_tools",
        "agent_message",
        "compaction",
        "compaction_summary",
        "context_compaction",
        "custom_tool_call",
        "custom_tool_call_output",
        "function_call",
        "function_call_output",
        "ghost_snapshot",
        "local_shell_call",
        "message",
        "other",
        "reasoning",
    }
)
"""Types of items of the Responses API; those that no code here reads are counted."""
_NOT_CHAT = frozenset(
    {"inter_agent_communication", "inter_agent_communication_metadata", "world_state"}
)
_EVENTS = frozenset(
    {
        "agent_message",
        "agent_reasoning",
        "agent_reasoning_raw_content",
        "agent_reasoning_section_break",
        "background_event",
        "collab_agent_spawn_end",
        "collab_agent_interaction_end",
        "collab_close_end",
        "collab_resume_end",
        "collab_waiting_end",
        "context_compacted",
        "dynamic_tool_call_request",
        "dynamic_tool_call_response",
        "entered_review_mode",
        "exec_command_begin",
        "exec_command_end",
        "exited_review_mode",
        "image_generation_end",
        "item_completed",
        "mcp_tool_call_begin",
        "mcp_tool_call_end",
        "patch_apply_begin",
        "patch_apply_end",
        "plan_update",
        "sub_agent_activity",
        "task_complete",
        "task_started",
        "thread_goal_updated",
        "thread_name_updated",
        "thread_settings_applied",
        "turn_complete",
        "turn_diff",
        "turn_started",
        "undo_completed",
        "user_message",
        "view_image_tool_call",
        "warning",
        "web_search_begin",
        "web_search_end",
    }
)
"""Events that repeat what the items say, or are about the display."""

FORMAT = session_format(
    "codex",
    about="session logs (rollouts) of OpenAI's Codex (2025 to 0.155), a file or a folder",
    patterns=["rollout-*.jsonl"],
    sessions=_sessions,
    claims=_claims,
    survives=(
        "metadata.agent_id",
        "metadata.cwd",
        "metadata.forked_from",
        "metadata.git_branch",
        "metadata.interrupted",
        "metadata.provider",
        "metadata.reasoning_effort",
        "metadata.reasoning_tokens",
        "metadata.version",
    ),
)
