"""Convert chat messages of other tools to OpenAI's form.

It understands OpenAI's own messages, OpenTelemetry's (`parts`), Anthropic's (blocks in `content`)
and LangChain's (serialised messages). A part of an unknown kind is kept unchanged, and the content
is then a list. Where a tool stores its messages is up to the callers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import as_json
from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json


def messages_from(value: object, *, role: str = "user") -> list[Message]:
    """Return the messages in a tool's input or output field.

    A text, or an object that is not a message, becomes one message of `role`.

    Raises:
        DataError: a list holds something that is neither an object nor a text.
    """
    if isinstance(value, Mapping) and not _is_message(value):
        for wrapper in _WRAPPERS:
            if value.get(wrapper):
                return messages_from(value[wrapper], role=role)
    if isinstance(value, list | tuple):
        return [message for inner in value for message in _messages_in(inner, role)]
    return [] if value is None else list(_messages_in(value, role))


def _messages_in(value: object, role: str) -> Iterator[Message]:
    if isinstance(value, Mapping):
        if _is_message(value):
            yield from message_from(_unwrapped(value), role=role)
        elif any(value.get(wrapper) for wrapper in _WRAPPERS):
            yield from messages_from(value, role=role)
        else:
            yield {"role": role, "content": as_text(value)}
    elif isinstance(value, str):
        yield {"role": role, "content": value}
    elif isinstance(value, list | tuple):
        yield from messages_from(value, role=role)
    else:
        raise DataError(f"expected a message, got {fields.shown(value)}")


def message_from(given: Mapping[str, Any], *, role: str = "user") -> list[Message]:
    """Convert one message; tool results inside it become separate messages before it."""
    said_by = given.get("role")
    who = _ROLES.get(said_by, said_by) if isinstance(said_by, str) else role
    if (plain := _plain(given, who)) is not None:
        return [plain]
    parts = given.get("parts")
    content = parts if isinstance(parts, list) else given.get("content")
    split = _Split()
    if isinstance(content, list):
        for part in content:
            split.take(part)
    rest = {
        key: value for key, value in given.items() if key not in _TAKEN and value not in (None, {})
    }
    if split.results and not (split.content or split.calls or split.thoughts):
        return split.results
    message: dict[str, Any] = {
        "role": who,
        "content": _content(content, split, joined=parts is content),
    }
    if not _CALLED.isdisjoint(given):
        split.calls.extend(map(call_from, _calls(given)))
    if split.calls:
        message["tool_calls"] = split.calls
    if thought := _thought(given, split):
        message["reasoning_content"] = thought
    return [*split.results, message | rest]


def _plain(given: Mapping[str, Any], who: str) -> Message | None:
    """Return a message that is only text, the most common case in large files, or None."""
    parts = given.get("parts")
    if not isinstance(parts, list):
        if given.get("content").__class__ is str and given.keys() <= _PLAIN:
            return {**given, "role": who}
    elif len(parts) == 1 and len(given) == 2:  # noqa: SIM102 - one question a line
        if isinstance(only := parts[0], dict) and only.get("type") == "text" and len(only) == 2:
            return {"role": who, "content": only.get("content")}
    return None


def call_from(given: Mapping[str, Any]) -> Message:
    """Return one tool call in OpenAI's form, whichever form it has."""
    function = given.get("function")
    told = function if isinstance(function, Mapping) else given
    arguments: object = told.get("arguments", told.get("args", told.get("input", _NONE)))
    call: dict[str, Any] = {"type": "function"}
    if isinstance(identifier := given.get("id"), str):
        call["id"] = identifier
    name = told.get("name")
    call["function"] = {
        "name": name if isinstance(name, str) else "",
        "arguments": arguments if isinstance(arguments, str) else as_json(arguments),
    }
    return call


def tools_from(value: object) -> list[Message] | None:
    """Return tool definitions in OpenAI's form; None if there are no tools."""
    given = decode_json(value) if isinstance(value, str) else value
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str):
        return None
    found = [_tool(tool) for tool in given if isinstance(tool, str | Mapping)]
    return found or None


def as_text(value: object) -> str:
    """Return text unchanged, and any other value as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else fields.encode(value).decode()


@dataclass(slots=True)
class _Split:
    """A message's parts, sorted by kind."""

    content: list[Any] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Message] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)

    def take(self, part: object) -> None:
        """Sort in one part."""
        if part.__class__ is not dict and not isinstance(part, Mapping):
            self.content.append({"type": "text", "text": as_text(part)})
            return
        kind = str(part.get("type"))
        if kind == "text":
            text = part.get("text", part.get("content"))
            rest = {key: part[key] for key in part if key not in {"type", "text", "content"}}
            self.content.append({"type": "text", "text": as_text(text), **rest})
        elif kind in {"reasoning", "thinking"}:
            said = (part.get(key) for key in ("content", "thinking", "text", "reasoning"))
            self.thoughts.append(as_text(next(filter(None, said), "")))
        elif kind in {"tool_call", "tool_use"}:
            self.calls.append(call_from(part))
        elif kind in {"tool_call_response", "tool_result"}:
            self.results.append(_result(part))
        else:
            self.content.append(_image(part) or dict(part))


def _result(part: Mapping[str, Any]) -> Message:
    said = (part[key] for key in ("response", "result", "content") if key in part)
    message: dict[str, Any] = {"role": "tool", "content": _result_content(next(said, None))}
    identifier = part.get("id", part.get("tool_use_id"))
    if isinstance(identifier, str):
        message["tool_call_id"] = identifier
    if isinstance(name := part.get("name"), str):
        message["name"] = name
    if part.get("is_error"):
        message["is_error"] = True
    return message


def _result_content(value: object) -> object:
    if isinstance(value, list) and value and all(map(_is_block, value)):
        return value
    return as_text(value)


def _content(given: object, split: _Split, *, joined: bool) -> object:
    """Return the content of a message, as a string if it contains only text."""
    if not isinstance(given, list):
        return given if given is None or isinstance(given, str) else as_text(given)
    if not split.content:
        return None if split.calls or split.thoughts else ""
    if joined and len(split.content) == 1 and split.content[0].keys() == {"type", "text"}:
        return split.content[0]["text"]
    return split.content


def _calls(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    calls = given.get("tool_calls")
    if not calls and isinstance(more := given.get("additional_kwargs"), Mapping):
        calls = more.get("tool_calls")
    if not calls and isinstance(function := given.get("function_call"), Mapping):
        calls = [function]
    if isinstance(calls, Mapping):
        calls = list(calls.values())
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []


def _thought(given: Mapping[str, Any], split: _Split) -> str:
    more = given.get("additional_kwargs")
    told = (
        given.get("reasoning_content"),
        given.get("reasoning"),
        more.get("reasoning_content") if isinstance(more, Mapping) else None,
    )
    return next(
        (text for text in told if isinstance(text, str) and text), "\n".join(split.thoughts)
    )


def _image(part: Mapping[str, Any]) -> Message | None:
    """Return OpenTelemetry's image as OpenAI's; None for anything else."""
    if part.get("modality") != "image":
        return None
    if part.get("type") == "uri" and isinstance(url := part.get("uri"), str):
        return {"type": "image_url", "image_url": {"url": url}}
    if part.get("type") == "blob" and isinstance(data := part.get("content"), str):
        kind = part.get("mime_type") or "application/octet-stream"
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
    return None


def _tool(given: str | Mapping[str, Any]) -> Message:
    tool = decode_json(given) if isinstance(given, str) else given
    if not isinstance(tool, Mapping):
        raise DataError(f"expected the definition of a tool, got {fields.shown(tool)}")
    if "function" in tool or "name" not in tool:
        return dict(tool)
    function = {key: value for key, value in tool.items() if key != "type" and value is not None}
    if "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    return {"type": "function", "function": function}


def _unwrapped(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message inside LangChain's serialised form, which has two variants."""
    if isinstance(inner := value.get("kwargs"), Mapping) and "lc" in value:
        names = value.get("id")
        kind = names[-1] if isinstance(names, list) and names else ""
        return {"role": str(kind).removesuffix("Chunk").removesuffix("Message").lower(), **inner}
    if isinstance(inner := value.get("data"), Mapping) and isinstance(value.get("type"), str):
        return {"role": value["type"], **inner}
    if "role" not in value:
        return {"role": value.get("type"), **value}
    return value


def _is_message(value: Mapping[str, Any]) -> bool:
    return (
        isinstance(value.get("role"), str)
        or (isinstance(value.get("kwargs"), Mapping) and "lc" in value)
        or (
            isinstance(kind := value.get("type"), str)
            and kind in _ROLES
            and ("content" in value or "data" in value)
        )
    )


def _is_block(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("type"), str)


_WRAPPERS = ("messages", "prompts", "generations", "choices", "message", "output", "input", "text")
"""Field names under which model requests and responses store their messages."""
_ROLES = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "function": "tool",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "developer": "developer",
}
_NONE: Message = {}
_CALLED = frozenset({"tool_calls", "additional_kwargs", "function_call"})
"""Fields of a message that may hold calls."""
_PLAIN = frozenset({"role", "content", "tool_call_id"})
"""The fields of most messages."""
_TAKEN = frozenset(
    {
        "role",
        "type",
        "content",
        "parts",
        "tool_calls",
        "function_call",
        "reasoning_content",
        "reasoning",
        "additional_kwargs",
        "response_metadata",
        "usage_metadata",
        "invalid_tool_calls",
        "example",
    }
)
"""Fields of a message that are converted separately, or that are not part of its text."""
