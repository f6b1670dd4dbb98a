"""The text form of a conversation: one writer and one reader, which are inverses.

A message is a line with its role in brackets, then its text; an empty line separates messages. A
tool's answer names the tool. Calls follow the text of their message, one a line:

    [user]
    What is 2 + 3?

    [assistant]
    <tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>

    [tool add]
    5

A line of a message that looks like a header or a call gets a backslash in front, which the reader
removes. A content part that is not text is written as its type: `<image_url>`. The text of a longer
conversation begins with the text of the shorter one, so a data set stores only what is new.

`state_of` gives an item's `state`: this text, or the bare words if the conversation is one user
message. `write_action` gives an item's `action`: the reply's text, then its calls, nothing escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orbiter.train.chat.message import Message, text_of
from orbiter.train.chat.tool_calls import (
    OPENING,
    is_call_line,
    name_of,
    read_call,
    write_call,
)
from orbiter.train.errors import DataError


def write_transcript(messages: Iterable[Message]) -> str:
    """Return the text of a conversation."""
    return "\n\n".join(Transcript().blocks(messages))


def read_transcript(text: str) -> list[dict[str, Any]]:
    """Parse the messages of a text written by `write_transcript` or `state_of`.

    A message has its role, its text as `content`, its calls without ids, and for a tool's answer
    the tool's name. A text that does not begin with a header is one user message.

    Raises:
        DataError: a line is marked as a call but is not a valid one.
    """
    if not text:
        return []
    headers = list(_HEADERS.finditer(text))
    if not headers or headers[0].start() != 0:
        return [{"role": "user", "content": text}]
    # An empty line separates messages, so it belongs to neither.
    ends = [header.start() - len("\n\n") for header in headers[1:]] + [len(text)]
    return [
        _read_message(header, text[header.end() : end])
        for header, end in zip(headers, ends, strict=True)
    ]


def state_of(messages: Sequence[Message]) -> str:
    """Return an item's `state`: a lone user message as plain text, else the transcript."""
    return Transcript().up_to(messages, len(messages))


def lone_words(messages: Sequence[Message]) -> str | None:
    """Return the text of a conversation that is a single user message; None for any other."""
    # A message with calls needs its header, or the calls would be lost.
    if len(messages) != 1 or messages[0].get("role") != "user" or messages[0].get("tool_calls"):
        return None
    return text_of(messages[0].get("content"))


def write_action(text: str, calls: Sequence[Message] | None) -> str:
    """Return a reply as text without escapes: its words, then a line for each call."""
    if not calls:
        return text
    return "\n".join(filter(None, [text, *map(write_call, calls)]))


def content_of(action: str, calls: Sequence[Message] | None) -> str:
    """Undo `write_action`; an action that does not end with its calls is all text."""
    words = write_action("", calls)
    if not words or action == words:
        return "" if words else action
    # Only exactly these calls at the end: any other action is left whole.
    return action.removesuffix("\n" + words)


class Transcript:
    """The text of a growing conversation; each message is written once.

    It remembers which tool each call's id is for, so that the answer can name the tool.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        """Create an empty transcript; `names` are the tools' names by call id."""
        self.names: dict[str, str] = {} if names is None else names
        self._blocks: list[str] = []

    def up_to(self, messages: Sequence[Message], end: int) -> str:
        """Return the state of the first `end` messages; `end` never shrinks.

        A lone user message is returned as plain text.
        """
        words = lone_words(messages[:1]) if end == 1 else None
        return self.with_roles(messages, end) if words is None else words

    def with_roles(self, messages: Sequence[Message], end: int) -> str:
        """Return the text of the first `end` messages, each with its role."""
        self._blocks += self.blocks(messages[len(self._blocks) : end])
        return "\n\n".join(self._blocks)

    def blocks(self, messages: Iterable[Message]) -> Iterator[str]:
        """Yield the text of each message."""
        for message in messages:
            lines = [_escaped(text_of(message.get("content")))]
            for call in _calls(message):
                # Kept for later, since a tool's answer carries the id but not the name.
                if (call_id := call.get("id")) is not None:
                    self.names[str(call_id)] = name_of(call)
                lines.append(write_call(call))
            yield "\n".join([_header(message, self.names), *filter(None, lines)])


def _calls(message: Message) -> Sequence[Message]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list | tuple) else ()


def _tool_name(message: Message, names: Mapping[str, str]) -> str:
    name = names.get(str(message.get("tool_call_id")), "")
    return name or str(message.get("name") or "")


def _header(message: Message, names: Mapping[str, str]) -> str:
    role = str(message.get("role") or "?")
    if role == "tool":
        name = _tool_name(message, names)
        # A name that the header could not hold is quoted.
        shown = name if _PLAIN_NAME.fullmatch(name) else _quoted(name)
        return f"[tool {shown}]" if name else "[tool]"
    return f"[{role}]" if _PLAIN_ROLE.fullmatch(role) else f"[role {_quoted(role)}]"


def _quoted(text: str) -> str:
    """Return a name as a JSON string that cannot end its header early."""
    return json.dumps(text).replace("]", "\\u005d")


def _escaped(text: str) -> str:
    """Put a backslash in front of each line that the reader would take for a header or a call."""
    # A fast test, because most texts contain neither.
    if "[" not in text and OPENING not in text:
        return text
    return _MARKED.sub(r"\\\g<0>", text)


def _read_message(header: re.Match[str], body: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": header["role"] or "tool"}
    if header["quoted"] is not None:
        message["role"] = _unquoted(header["quoted"])
    if header["tool"] is not None:
        message["name"] = _unquoted(header["tool"])
    lines = body.split("\n")[1:]
    # Calls end a message. Lines of its text that look like calls were marked by the writer.
    first_call = len(lines)
    while first_call and is_call_line(lines[first_call - 1]):
        first_call -= 1
    # One backslash is removed from each marked line, the one the writer added.
    message["content"] = _UNMARK.sub("", "\n".join(lines[:first_call]))
    if calls := [read_call(line) for line in lines[first_call:]]:
        message["tool_calls"] = calls
    return message


def _unquoted(name: str) -> str:
    if not name.startswith('"'):
        return name
    try:
        return str(json.loads(name))
    except ValueError as error:
        raise DataError(f"a header's name must be a JSON string, got {name[:80]}") from error


_HEADER = (
    # The mark must reach the end of the line, so a bracket within a text is no header.
    r"\[(?:tool (?P<tool>[^\]\n]+)|role (?P<quoted>\"[^\]\n]*\")|(?P<role>[A-Za-z?][\w.-]*))\]$"
)
"""`[tool NAME]`, `[role "..."]` for a role that needs quotes, or a role by itself."""
_HEADERS = re.compile(rf"(?:\A|(?<=\n\n)){_HEADER}", re.MULTILINE)
_MARKED = re.compile(rf"^\\*(?={_HEADER}|{OPENING})", re.MULTILINE)
_UNMARK = re.compile(rf"^\\(?=\\*(?:{_HEADER}|{OPENING}))", re.MULTILINE)
_PLAIN_ROLE = re.compile(r"[A-Za-z?][\w.-]*")
_PLAIN_NAME = re.compile(r'[^"\]\s][^\]\n\r]*')
