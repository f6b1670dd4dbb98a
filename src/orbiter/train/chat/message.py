"""Defines the project's one message type, its checks, and its text.

A message has the form of OpenAI's chat completions, whatever API or tool it came from;
`dialects.py` turns the others into it. Its text form is in `transcript.py`, its calls are in
`tool_calls.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orbiter.train.errors import DataError, did_you_mean
from orbiter.train.json_files import fields

Message = Mapping[str, Any]
"""One message of a chat, or one call or tool in it, in the form of OpenAI's chat completions."""
Json = Any
"""A value that came out of JSON."""

REASONING = "reasoning"
"""The entry of an item's metadata that holds what the model thought before its answer; in a
message that is `reasoning_content`."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""The roles that every consumer of chats knows."""


def check_messages(messages: object, name: str = "messages") -> list[Message]:
    """Return a list of messages after checking it.

    Raises:
        DataError: a message is invalid; names it, and says what was expected.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError(f"{name} must be a list of messages, got {fields.shown(messages)}")
    for index, message in enumerate(messages):
        _check_message(message, f"{name}[{index}]")
    return list(messages)


def text_of(content: Json) -> str:
    """Return the text of a message's content; a part that is not text becomes `<its type>`."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list | tuple) else [content]
    return "".join([_part_text(part) for part in parts])


def _part_text(part: Json) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return str(part)
    text = part.get("text")
    if isinstance(text, str):
        return text
    refusal = part.get("refusal")
    return refusal if isinstance(refusal, str) else f"<{part.get('type', 'part')}>"


def _check_message(message: object, name: str) -> None:
    if not isinstance(message, Mapping):
        raise DataError(f"{name} must be an object, got {fields.shown(message)}")
    role = message.get("role")
    if not isinstance(role, str):
        raise DataError(f"{name} must have a role, got {fields.shown(message)}")
    if role not in ROLES:
        raise DataError(
            f"{name}: unknown role {fields.shown(role)}{did_you_mean(role, ROLES)}; known roles: "
            f"{', '.join(sorted(ROLES))}"
        )
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise DataError(f"{name}: content must be text or parts, got {fields.shown(content)}")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"{name}: tool_calls must be a list of objects, got {fields.shown(calls)}")
