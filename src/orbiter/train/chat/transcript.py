"""The fixed text form of a conversation (`state`) and of a reply (`action`).

A message is a line with its role in brackets and, below it, its text; messages stand apart by an
empty line. A tool's answer names the tool. The calls of a reply follow its text, a line each:

    [user]
    What is 2 + 3?

    [assistant]
    <tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>

    [tool add]
    5

The form of a call is the one in which the engine's prompts describe tools to a model without a
place for them in its template. A part that is no text stands as its type: `<image_url>`. The state
of a later turn begins with the state of the earlier one, so a data set stores only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache

from orbiter.train.chat.reply import Json, Message, Reply, Unreadable, decode


def render_state(messages: Iterable[Message], names: dict[str, str]) -> str:
    """Return the text of messages; `names` gives and learns the tool behind each call's id."""
    return "\n\n".join([_message(message, names) for message in messages])


def render_action(reply: Reply) -> str:
    """Return the text of a reply."""
    calls = [render_call(call) for call in reply.tool_calls]
    return "\n".join([reply.text, *calls] if reply.text else calls)


def render_call(call: Message) -> str:
    """Return the text of one call of a tool; broken arguments stay as the model wrote them."""
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    return _spoken(str(function.get("name")), arguments)


_encode = json.JSONEncoder(ensure_ascii=False).encode


@lru_cache(maxsize=16)  # a call is said twice: in its reply, and in the next request
def _spoken(name: str, arguments: str) -> str:
    given: object = arguments
    try:
        given = decode(arguments.encode("utf-8", "replace"))
    except Unreadable:
        with suppress(ValueError):
            given = json.loads(arguments)  # knows NaN
    spoken = {"name": name, "arguments": given}
    return f"<tool_call>{_encode(spoken)}</tool_call>"


def text_of(content: Json) -> str:
    """Return a content's text, whether it is a text or a list of parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    return "".join([_part(part) for part in parts])


def _part(part: Json) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return str(part)
    text = part.get("text")
    if isinstance(text, str):
        return text
    refusal = part.get("refusal")
    return refusal if isinstance(refusal, str) else f"<{part.get('type', 'part')}>"


def _message(message: Message, names: dict[str, str]) -> str:
    role = message.get("role", "?")
    lines = [text_of(message.get("content"))]
    for call in message.get("tool_calls") or ():
        names[str(call.get("id"))] = str((call.get("function") or {}).get("name"))
        lines.append(render_call(call))
    if role == "tool":
        role = f"tool {names.get(str(message.get('tool_call_id')), '')}".strip()
    return "\n".join([f"[{role}]", *filter(None, lines)])
