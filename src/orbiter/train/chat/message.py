"""One message of a chat in OpenAI's form: what it must hold, and what it says as text.

An answer with calls is, as text, its words and behind them one line a call: the shape in which a
model writes calls whose chat template has no place for them. Left out: whole chats and the items
that they make (`conversation.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from orbiter.train.errors import DataError
from orbiter.train.json_files.records import decode_json
from orbiter.train.trajectory import fields

Message = Mapping[str, object]
"""One message of a chat, in OpenAI's form."""

REASONING = "reasoning"
"""The entry of an item's metadata that holds what the model thought before its answer; in a
message that is `reasoning_content`."""


def check_messages(messages: object, name: str = "messages") -> list[Message]:
    """Return a list of messages, or say what is wrong with it.

    Raises:
        DataError: names the message, and what was expected of it.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError(f"{name} must be a list of messages, got {fields.shown(messages)}")
    for place, message in enumerate(messages):
        _check_message(message, f"{name}[{place}]")
    return list(messages)


def action_of(text: str, calls: Sequence[Message] | None) -> str:
    """Return an answer as the model said it: its text, and behind it a line for each call."""
    if not calls:
        return text
    return "\n".join(filter(None, [text, *map(call_in_words, calls)]))


def content_of(action: str, calls: Sequence[Message] | None) -> str:
    """Undo `action_of`; an action that does not repeat its calls is all text."""
    words = action_of("", calls)
    if not words or action == words:
        return "" if words else action
    return action.removesuffix("\n" + words)


def call_in_words(call: Message) -> str:
    """Return a call as a model without a template for calls would write it."""
    function = call.get("function", call)
    told = function if isinstance(function, Mapping) else {}
    name, arguments = told.get("name"), told.get("arguments")
    if name.__class__ is arguments.__class__ is str and len(arguments) < _REMEMBERED:
        return _in_words_again(name, arguments)
    return _in_words(name, arguments)


def _in_words(name: object, arguments: object) -> str:
    spoken = {"name": name, "arguments": arguments_of(arguments)}
    return f"<tool_call>{as_json(spoken)}</tool_call>"


_in_words_again = lru_cache(maxsize=1 << 10)(_in_words)
"""For calls that are told with their answer, and again in each prompt behind it."""


def as_json(value: object) -> str:
    """Return a value as the text of JSON that models write: a space behind each comma and colon.

    Raises:
        DataError: it is nested too deep.
    """
    try:
        return _ENCODE(value)
    except RecursionError:
        raise DataError("a call's arguments are nested too deep") from None


def arguments_of(arguments: object) -> object:
    """Return a call's arguments as an object; a text that is none stays as the model wrote it."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = decode_json(arguments)
    except DataError:
        return arguments
    return value if isinstance(value, dict) else arguments


def calls_with_text(calls: Sequence[Message]) -> list[dict[str, Any]]:
    """Return calls with their arguments as a text of JSON, as OpenAI has them."""
    return [_with_arguments(call, _arguments_as_text) for call in calls]


def calls_with_objects(calls: Sequence[Message]) -> list[dict[str, Any]]:
    """Return calls with their arguments as an object, as chat templates want them."""
    return [_with_arguments(call, arguments_of) for call in calls]


def tools_in(value: object) -> list[Message] | None:
    """Return a row's tools, which some files hold as a text of JSON; none at all is None.

    Raises:
        DataError: they are no list of objects.
    """
    tools = decode_json(value) if isinstance(value, str) and value.strip() else value
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"tools must be a list of objects, got {fields.shown(value)}")
    return tools


def state_of(messages: Sequence[Message]) -> str:
    """Return a chat as text: a lone user's words as they are, else each message behind its role."""
    return Transcript().up_to(messages, len(messages))


class Transcript:
    """The text of a growing chat, each message turned into text once.

    The form is that of captured items: `[role]`, below it what was said, and an empty line between
    messages; a tool's answer names the tool.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._names: dict[str, str] = {}

    def up_to(self, messages: Sequence[Message], end: int) -> str:
        """Return the text of the first `end` messages; `end` never shrinks.

        A lone user's words stand as they are.
        """
        if end == 1 and messages[0]["role"] == "user":
            return text_of(messages[0].get("content"))
        return self.with_roles(messages, end)

    def with_roles(self, messages: Sequence[Message], end: int) -> str:
        """Return the text of the first `end` messages, a lone user's behind its role too."""
        for message in messages[len(self._parts) : end]:
            self._parts.append(self._message(message))
        return "\n\n".join(self._parts)

    def _message(self, message: Message) -> str:
        role = str(message["role"])
        for call in cast("Sequence[Message]", message.get("tool_calls") or ()):
            function = call.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
            self._names[str(call.get("id"))] = str(name)
        if role == "tool":
            role = f"tool {self._names.get(str(message.get('tool_call_id')), '')}".strip()
        said = _said(message)
        return f"[{role}]\n{said}" if said else f"[{role}]"


def text_of(content: object) -> str:
    """Return the text in a message's content; a part that is no text stands as its type."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(map(_part, content))


def _part(part: object) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    text = part.get("text", part.get("refusal"))
    return text if isinstance(text, str) else f"<{part.get('type', 'part')}>"


def _check_message(message: object, name: str) -> None:
    if not isinstance(message, Mapping):
        raise DataError(f"{name} must be an object, got {fields.shown(message)}")
    if not isinstance(message.get("role"), str):
        raise DataError(f"{name} must have a role, got {fields.shown(message)}")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise DataError(f"{name}: content must be text or parts, got {fields.shown(content)}")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"{name}: tool_calls must be a list of objects, got {fields.shown(calls)}")


def _with_arguments(call: Message, form: Callable[[object], object]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or "arguments" not in function:
        return dict(call)
    return {**call, "function": {**function, "arguments": form(function["arguments"])}}


def _arguments_as_text(arguments: object) -> object:
    return as_json(arguments) if isinstance(arguments, Mapping | list) else arguments


def _said(message: Message) -> str:
    calls = cast("Sequence[Message] | None", message.get("tool_calls"))
    return action_of(text_of(message.get("content")), calls)


_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
_REMEMBERED = 1 << 12
"""Characters of a call's arguments above which its words are not remembered."""
