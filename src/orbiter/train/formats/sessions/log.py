"""Holds one agent session as a tree of messages, and converts it to items.

A session log is not a list of messages: users go back and try again, agents compact their context,
and sub-agents have chats parallel to the main one. So each message is a node that links to the
message before it, and the prompt of an answer is the path from the first message to it.

Not here: the records of a particular agent (`claude_code.py`, `codex.py`, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orbiter.train.chat.message import Message
from orbiter.train.formats.sessions.private import without_private
from orbiter.train.tracing.recorded import Recorder
from orbiter.train.trajectory import TrajectoryItem

Facts = dict[str, Any]


@dataclass(slots=True, eq=False)
class Node:
    """One message and the one before it."""

    message: Message
    parent: Node | None
    time: float | None = None
    """Seconds since 1970."""
    compacted: Node | None = None
    """For the first message after a compaction: the last message before the compaction."""

    def path(self) -> list[Node]:
        """Return the nodes from the first message of the context to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes


@dataclass(slots=True, eq=False)
class LoggedAnswer:
    """One answer of a model."""

    node: Node
    facts: Facts
    """Entries of the item's metadata: model, tokens, finish_reason and the like."""
    identifier: str | None
    """The id of the response; a copy of the session in another file has the same one."""
    compactions: int
    """The number of times that the context was compacted before this answer."""
    runs: dict[str, Facts] = field(default_factory=dict[str, Facts])
    """What is known about the runs of its tool calls, by call id."""


@dataclass(slots=True, eq=False)
class Chat:
    """The messages of one agent of a session, in the order in which they were logged."""

    agent: str | None = None
    """The name of a sub-agent; None for the main agent."""
    facts: Facts = field(default_factory=Facts)
    """Metadata entries of all its items."""
    tools: list[Message] | None = None
    tail: Node | None = None
    """The last message of the current context."""
    answers: list[LoggedAnswer] = field(default_factory=list[LoggedAnswer])
    compactions: int = 0
    _compacted: Node | None = None
    _asked: dict[str, LoggedAnswer] = field(default_factory=dict[str, LoggedAnswer])

    def say(self, message: Message, time: float | None = None) -> Node:
        """Append a message that is not an answer of the model."""
        # The link to before the compaction goes to the first message after it, once.
        self.tail = Node(message, self.tail, time, self._compacted)
        self._compacted = None
        return self.tail

    def answer(
        self, message: Message, time: float | None, facts: Facts, identifier: str | None = None
    ) -> LoggedAnswer:
        """Append an answer of the model."""
        answer = LoggedAnswer(self.say(message, time), facts, identifier, self.compactions)
        self.answers.append(answer)
        self.note_calls(answer)
        return answer

    def note_calls(self, answer: LoggedAnswer) -> None:
        """Record which calls an answer made; call this again after adding calls to it."""
        for call in answer.node.message.get("tool_calls") or ():
            self._asked[str(call.get("id"))] = answer

    def result(
        self, message: Message, time: float | None = None, run: Mapping[str, Any] | None = None
    ) -> Node:
        """Append the result of a tool call, with what is known about the run of the tool."""
        call_id = str(message.get("tool_call_id"))
        node = self.say(message, time)
        answer = self._asked.get(call_id)
        # A result without a call, as in a context that was cut or edited.
        if answer is None:
            return node
        facts: Facts = {"tool_call_id": call_id, "name": _name_of_call(answer, call_id)}
        begun = answer.node.time
        # An approximation, unless the log gives the tool's own time: it includes waiting for
        # permission.
        if time is not None and begun is not None and time > begun:
            facts["seconds"] = round(time - begun, 6)
        if message.get("is_error"):
            facts["error"] = True
        known = {name: value for name, value in (run or {}).items() if value is not None}
        answer.runs[call_id] = facts | known
        return node

    def asked_by(self, call_id: str) -> LoggedAnswer | None:
        """Return the answer that made a call."""
        return self._asked.get(call_id)

    def start_again(self, messages: Sequence[Message] = (), time: float | None = None) -> None:
        """Replace the context by these messages, as compaction does."""
        # There is no context to replace, as at the start of a resumed log.
        if self.tail is None:
            return
        self._compacted, self.tail = self.tail, None
        self.compactions += 1
        for message in messages:
            self.say(message, time)

    def go_back(self, node: Node | None) -> None:
        """Continue after an earlier message; what came after it is abandoned."""
        self.tail = node

    def kept(self) -> set[int]:
        """Return the ids of the nodes that lead to the end of the chat, across compactions."""
        ids = set()
        # A chat may end right after a compaction, before any new message.
        node = self.tail or self._compacted
        while node is not None:
            ids.add(id(node))
            # Compacted messages are not abandoned: the summary took their place.
            node = node.parent or node.compacted
        return ids


@dataclass(slots=True, eq=False)
class LoggedSession:
    """One run of a coding agent: the main chat and those of its sub-agents."""

    identifier: str
    facts: Facts
    chats: list[Chat] = field(default_factory=list[Chat])


class AnswerStep(NamedTuple):
    """An answer and the chat that it is in."""

    chat: Chat
    answer: LoggedAnswer


def items_of_session(
    session: LoggedSession, *, redact: bool, seen: set[str] | None = None
) -> Iterator[TrajectoryItem]:
    """Yield the items of a session: one for each answer, in the order of their times.

    Args:
        session: The session; all its chats form one episode.
        redact: Whether to mask secrets, e-mail addresses and home paths.
        seen: The ids of answers that were already yielded from another file. Those are left out,
            because a resumed session repeats the earlier answers; the ids of new ones are added.
    """
    if redact:
        for chat in session.chats:
            _redact(chat)
    recorders = {id(chat): Recorder() for chat in session.chats}
    # After the whole log, because only its end shows which branches the user left.
    kept = {id(chat): chat.kept() for chat in session.chats}
    last = {id(chat): chat.answers[-1] for chat in session.chats if chat.answers}
    step = 0
    for chat, answer in _in_order(session.chats):
        if answer.identifier is not None and seen is not None:
            # Left out, but its node stays, so that later prompts contain it.
            if answer.identifier in seen:
                continue
            seen.add(answer.identifier)
        facts = _facts(session, answer, abandoned=id(answer.node) not in kept[id(chat)])
        if answer is last[id(chat)] and (after := _messages_after(chat, answer)):
            facts["messages_after"] = after
        if redact:
            facts = without_private(facts)
        prompt = answer.node.parent.path() if answer.node.parent is not None else []
        yield recorders[id(chat)].item(
            [node.message for node in prompt],
            answer.node.message,
            {**chat.facts, **facts},
            tools=chat.tools,
            timestamp=answer.node.time,
            episode_id=session.identifier,
            step=step,
            agent=chat.agent,
        )
        # Counted over all chats: a step is a position in the episode, not in a chat.
        step += 1


def with_plain_text(message: Message) -> Message:
    """Return a message with its content as one text, if its parts are only texts."""
    content = message.get("content")
    if not isinstance(content, list) or not content:
        return message
    if not all(isinstance(part, dict) and part.keys() == {"type", "text"} for part in content):
        return message
    return {**message, "content": "\n".join(str(part["text"]) for part in content)}


def _in_order(chats: Sequence[Chat]) -> list[AnswerStep]:
    """Return the answers of all chats by their times; those of one chat stay in their order."""
    keyed: list[tuple[float, int, int, AnswerStep]] = []
    for number, chat in enumerate(chats):
        latest = 0.0
        for position, answer in enumerate(chat.answers):
            # An answer without a time, or with an earlier one, keeps its place in its chat.
            latest = max(latest, answer.node.time or 0.0)
            keyed.append((latest, number, position, AnswerStep(chat, answer)))
    keyed.sort(key=lambda entry: entry[:3])
    return [entry[3] for entry in keyed]


def _facts(session: LoggedSession, answer: LoggedAnswer, *, abandoned: bool) -> Facts:
    facts = session.facts | {
        name: value for name, value in answer.facts.items() if value is not None
    }
    before = answer.node.parent.time if answer.node.parent is not None else None
    # From the message before it: logs have no time at which a request was sent.
    if before is not None and answer.node.time is not None and answer.node.time > before:
        facts["seconds"] = round(answer.node.time - before, 6)
    if answer.runs:
        facts["tool_runs"] = list(answer.runs.values())
    if answer.compactions:
        facts["compactions"] = answer.compactions
    if abandoned:
        facts["abandoned"] = True
    return facts


def _messages_after(chat: Chat, answer: LoggedAnswer) -> list[Message]:
    """Return the messages that follow an answer up to the end of its chat."""
    nodes = chat.tail.path() if chat.tail is not None else []
    position = next((position for position, node in enumerate(nodes) if node is answer.node), None)
    return [] if position is None else [node.message for node in nodes[position + 1 :]]


def _redact(chat: Chat) -> None:
    """Mask private data in each message once, so that prompts still share their messages."""
    done: set[int] = set()
    ends = [answer.node for answer in chat.answers] + ([chat.tail] if chat.tail else [])
    for end in ends:
        node: Node | None = end
        while node is not None and id(node) not in done:
            done.add(id(node))
            node.message = without_private(node.message)
            node = node.parent
    chat.facts = without_private(chat.facts)


def _name_of_call(answer: LoggedAnswer, call_id: str) -> str:
    for call in answer.node.message.get("tool_calls") or ():
        if call.get("id") == call_id:
            named = call.get("function") or call.get("custom") or {}
            return str(named.get("name") or call.get("type") or "")
    return ""
