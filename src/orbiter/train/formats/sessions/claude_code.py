"""Imports the session logs of Claude Code: `~/.claude/projects/PROJECT/SESSION.jsonl`.

Each line is a record. A record of type `user` or `assistant` holds a message in Anthropic's form
and points to the record before it (`parentUuid`). One response of the model is several records with
the same message id, one per block of its content. Sub-agents are either records with `isSidechain`
in the same file (until 2.0) or files `agent-ID.jsonl` next to it or in `SESSION/subagents/`.

Not in the logs: the system prompt and the definitions of the tools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from orbiter.train.chat.dialects import message_from
from orbiter.train.chat.message import Message, text_of
from orbiter.train.errors import DataError
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
from orbiter.train.json_files.records import Record, decode_object
from orbiter.train.json_files.source import Source

Block = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Chain:
    """One chat while its records are read."""

    chat: Chat
    nodes: dict[str, Node | None] = field(default_factory=dict[str, "Node | None"])
    """For each record, by uuid, the last message up to it."""
    blocks: dict[str, list[Block]] = field(default_factory=dict[str, list[Block]])
    """The content of the responses so far, by message id."""
    answers: dict[str, LoggedAnswer] = field(default_factory=dict[str, LoggedAnswer])
    """The answers by message id."""


@dataclass(slots=True, eq=False)
class _ClaudeCodeReading:
    """One session while its records are read."""

    session: LoggedSession
    tally: Tally
    chains: dict[str, _Chain] = field(default_factory=dict[str, _Chain])
    """The chats; the main one has the key ""."""
    sidechain_of: dict[str, str] = field(default_factory=dict[str, str])
    """For each sidechain record without an agent id, by uuid, the key of its chat."""

    def take(self, row: Mapping[str, Any], agent: str | None) -> None:
        """Process one record.

        Args:
            row: The record.
            agent: The agent of the file, if it is the file of a sub-agent.

        Raises:
            DataError: the record does not have the form of its type.
        """
        kind = kind_of(row)
        # Every record belongs to a chain, also those that are not messages: later records may name
        # them as their parent.
        chain = self._chain(row, agent)
        uuid, parent = str(row.get("uuid") or ""), str(row.get("parentUuid") or "")
        before = chain.chat.tail
        if kind == "user":
            self._add_user(chain, row, parent)
        elif kind == "assistant":
            self._add_assistant(chain, row)
        # The summary that replaces the context follows as a user's record.
        elif kind == "system" and row.get("subtype") == "compact_boundary":
            chain.chat.start_again()
        elif kind == "system" or kind in _NOT_CHAT:
            name = f"{kind}/{row['subtype']}" if row.get("subtype") else str(kind)
            self.tally.known[name] += 1
        else:
            self.tally.unknown[str(kind)] += 1
        if uuid:
            # A record that is not a message leads to the last message before it, so that a child of
            # it continues there.
            moved = chain.chat.tail is not before
            chain.nodes[uuid] = chain.chat.tail if moved else chain.nodes.get(parent, before)

    def _chain(self, row: Mapping[str, Any], agent: str | None) -> _Chain:
        """Return the chat that a record belongs to."""
        key = agent or ""
        if not agent and row.get("isSidechain"):
            # Older logs have no agent id: a sidechain begins with a record without a parent.
            uuid, parent = str(row.get("uuid") or ""), str(row.get("parentUuid") or "")
            key = str(row.get("agentId") or self.sidechain_of.get(parent) or uuid)
            self.sidechain_of[uuid] = key
        if key not in self.chains:
            chat = Chat(agent=f"agent-{key}" if key else None)
            self.chains[key] = _Chain(chat)
            self.session.chats.append(chat)
        return self.chains[key]

    def _add_user(self, chain: _Chain, row: Mapping[str, Any], parent: str) -> None:
        time = seconds_of(row.get("timestamp"))
        message = _message(row)
        results = [block for block in _blocks(message) if block.get("type") == "tool_result"]
        # Without a boundary record before it, as in older logs, the summary itself starts the new
        # context.
        if row.get("isCompactSummary"):
            if chain.chat.tail is not None:
                chain.chat.start_again()
        # Tool results cannot go back: they follow the answer that asked for them.
        elif not results:
            self._go_back(chain, row, parent)
        for part in message_from(message, role="user"):
            if part.get("role") == "tool":
                chain.chat.result(with_plain_text(part), time, _run(row, part))
            else:
                chain.chat.say(with_plain_text(part), time)

    def _go_back(self, chain: _Chain, row: Mapping[str, Any], parent: str) -> None:
        """Move to the parent of a user's message, which is an earlier one if the user went back."""
        chat = chain.chat
        if not parent:
            # No parent in the middle of a chat: the user cleared it. After a compaction there is
            # none either, but a logical one.
            if not row.get("logicalParentUuid") and chat.tail is not None and "parentUuid" in row:
                self.tally.remarks["conversations that a user cleared or began again"] += 1
                chat.go_back(None)
            return
        target = chain.nodes.get(parent, chat.tail)
        # A parent that is not in the file (a log that begins in the middle) is no going back.
        if target is None or chat.tail is None:
            return
        # The results of parallel calls follow one another, so the parent is any one of them.
        skipped = chat.tail
        while skipped is not target and skipped.message.get("role") == "tool" and skipped.parent:
            skipped = skipped.parent
        if skipped is not target:
            self.tally.remarks["times that a user went back to an earlier message"] += 1
            chat.go_back(target)

    def _add_assistant(self, chain: _Chain, row: Mapping[str, Any]) -> None:
        message = _message(row)
        # Claude Code writes its own notices in the form of answers; the model did not say them.
        if row.get("isApiErrorMessage") or message.get("model") == "<synthetic>":
            self.tally.known["assistant/api error"] += 1
            return
        identifier = str(message.get("id") or row.get("uuid") or "")
        blocks = _blocks(message)
        facts = _facts_of(message)
        # A further record of the same response: its blocks are added to the one answer.
        if identifier in chain.answers:
            answer = chain.answers[identifier]
            known = chain.blocks[identifier]
            known += [block for block in blocks if block not in known]
            # The last record has the final token counts; earlier ones are preliminary.
            answer.facts |= {name: value for name, value in facts.items() if value is not None}
            answer.node.message = _answer_of(known)
            chain.chat.note_calls(answer)
            return
        chain.blocks[identifier] = blocks
        time = seconds_of(row.get("timestamp"))
        chain.answers[identifier] = chain.chat.answer(_answer_of(blocks), time, facts, identifier)


def _sessions(sources: Sequence[Source], tally: Tally) -> Iterator[LoggedSession]:
    """Yield the sessions in files; the files of sub-agents belong to the session they name."""
    logs = [source for source in sources if Path(source.path).name != "journal.jsonl"]
    if left := len(sources) - len(logs):
        tally.known["journal.jsonl of a workflow"] += left
    mains = [(source, _session_of(source)) for source in logs if _agent_of(source) is None]
    below: dict[str, list[Source]] = {}
    for source in logs:
        if _agent_of(source) is not None:
            below.setdefault(_session_of(source), []).append(source)
    # The main file first, since a sub-agent is named after the call in it.
    groups = [(name, [source, *below.pop(name, ())]) for source, name in mains]
    # Sub-agents whose main file was not given become separate sessions.
    for identifier, files in [*groups, *below.items()]:
        reading = _ClaudeCodeReading(LoggedSession(identifier, {"source": "claude-code"}), tally)
        for source in files:
            for record in records_of(source, tally):
                try:
                    _take(reading, record, _agent_of(source))
                except DataError as error:
                    source.refuse(record.line, str(error), error)
        _name_agents(reading)
        yield reading.session


def _take(reading: _ClaudeCodeReading, record: Record, agent: str | None) -> None:
    row = record.value
    if "type" not in row:
        raise DataError("not a record of Claude Code: it has no type")
    for name, entry in _SESSION_FACTS.items():
        if row.get(name):
            reading.session.facts[entry] = row[name]
    reading.take(row, agent)


def _session_of(source: Source) -> str:
    """Return the id of the session that a file belongs to: for a sub-agent's, that of its main."""
    path = Path(source.path)
    if _agent_of(source) is None and _UUID.fullmatch(path.stem):
        return path.stem
    if "subagents" in path.parts:
        folders = path.parts
        # The last "subagents" of the path, because the user's own folders may have that name.
        return folders[len(folders) - 1 - folders[::-1].index("subagents") - 1]
    # A renamed file: the id is in its records.
    with source.open() as file:
        for line in islice(file, _HEAD):
            try:
                if session_id := decode_object(line).get("sessionId"):
                    return str(session_id)
            except DataError:
                continue
    return path.stem


def _agent_of(source: Source) -> str | None:
    name = Path(source.path).stem
    return name.removeprefix("agent-") if name.startswith("agent-") else None


def _name_agents(reading: _ClaudeCodeReading) -> None:
    """Name the sub-agents by their types, and note which call started each."""
    runs = {
        str(run["agent_id"]): run
        for chain in reading.chains.values()
        for answer in chain.chat.answers
        for run in answer.runs.values()
        if "agent_id" in run
    }
    calls = [
        (call, as_object(block.get("input")))
        for chain in reading.chains.values()
        for blocks in chain.blocks.values()
        for block in blocks
        if block.get("type") == "tool_use" and (call := str(block.get("id")))
    ]
    for key, chain in reading.chains.items():
        if not key:
            continue
        call_id = str(runs[key]["tool_call_id"]) if key in runs else _call_with_prompt(chain, calls)
        if call_id is not None:
            chain.chat.facts["parent_tool_call_id"] = call_id
            kind = next(
                (given.get("subagent_type") for call, given in calls if call == call_id), None
            )
            chain.chat.agent = str(kind) if kind else chain.chat.agent
        chain.chat.facts["agent_id"] = key


def _call_with_prompt(chain: _Chain, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """Return the call whose prompt is a sub-agent's first message, as older logs need."""
    first = chain.chat.answers[0].node.path()[0] if chain.chat.answers else chain.chat.tail
    words = text_of(first.message.get("content")) if first is not None else ""
    return next((call for call, given in calls if words and given.get("prompt") == words), None)


def _message(row: Mapping[str, Any]) -> dict[str, Any]:
    message = row.get("message")
    if not isinstance(message, dict):
        raise DataError(f"a record of type {row.get('type')!r} has no message")
    return message


def _blocks(message: Mapping[str, Any]) -> list[Block]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DataError("field 'message.content': expected text or blocks")
    return [
        block if isinstance(block, dict) else {"type": "text", "text": str(block)}
        for block in content
    ]


def _answer_of(blocks: Sequence[Block]) -> Message:
    """Return an answer in OpenAI's form; text in several blocks becomes one text."""
    # Results of tools that the server ran come first; the answer is the last message.
    *_, message = message_from({"role": "assistant", "content": list(blocks)})
    return with_plain_text(message)


def _facts_of(message: Mapping[str, Any]) -> Facts:
    usage = as_object(message.get("usage"))
    read, written = usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")
    # Anthropic counts cached tokens apart; our input_tokens include them.
    counts = [usage.get("input_tokens"), read, written]
    known = [count for count in counts if isinstance(count, int)]
    return {
        "model": message.get("model"),
        "response_id": message.get("id"),
        "finish_reason": message.get("stop_reason"),
        "input_tokens": sum(known) if known else None,
        "cached_tokens": read or None,
        "output_tokens": usage.get("output_tokens"),
    }


def _run(row: Mapping[str, Any], result: Message) -> Facts:
    """Return what a record says about the run of a tool besides its result."""
    about = as_object(row.get("toolUseResult"))
    milliseconds = about.get("totalDurationMs", about.get("durationMs"))
    return {
        "agent_id": about.get("agentId"),
        "seconds": milliseconds / 1e3 if isinstance(milliseconds, int | float) else None,
        "interrupted": about.get("interrupted") or None,
        "error": text_of(result.get("content"))[:200] if result.get("is_error") else None,
    }


def _claims(rows: list[dict[str, Any]]) -> float:
    for row in rows:
        if row.get("type") in ("user", "assistant") and "sessionId" in row and "uuid" in row:
            return 0.95
    # A log may begin with more such records than fit into the head.
    known = [row for row in rows if str(row.get("type")) in _NOT_CHAT and "timestamp" not in row]
    return 0.4 if rows and len(known) == len(rows) else 0.0


_HEAD = 100
"""The number of lines in which the id of a session is looked for."""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SESSION_FACTS = {"cwd": "cwd", "version": "version", "gitBranch": "git_branch"}
_NOT_CHAT = frozenset(
    {
        "agent-color",
        "agent-name",
        "agent-setting",
        "ai-title",
        "attachment",
        "attribution-snapshot",
        "content-replacement",
        "cost-state",
        "custom-title",
        "file-history-snapshot",
        "last-prompt",
        "mode",
        "permission-mode",
        "pr-link",
        "progress",
        "queue-operation",
        "summary",
        "tag",
        "task-summary",
        "worktree-state",
    }
)
"""Types of records that are not messages of the conversation."""

FORMAT = session_format(
    "claude-code",
    about="session logs of Claude Code (1.0 to 2.1), a file or a folder of projects",
    patterns=["*.jsonl"],
    sessions=_sessions,
    claims=_claims,
    survives=(
        "metadata.agent_id",
        "metadata.cwd",
        "metadata.git_branch",
        "metadata.parent_tool_call_id",
        "metadata.response_id",
        "metadata.version",
    ),
)
