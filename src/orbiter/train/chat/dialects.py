"""Convert chat messages of other tools to OpenAI's form.

It understands OpenAI's own messages and the items of its Responses API, OpenTelemetry's messages
(`parts`), Anthropic's (blocks in `content`) and LangChain's (serialised messages). A part of an
unknown kind is kept unchanged, and the content is then a list. Where a tool stores its messages is
up to the callers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import and_
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.chat.parts import (
    Split,
    as_text,
    call_from,
    result_content,
    text_part,
    thought_in,
)
from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json


def messages_from(value: object, *, role: str = "user") -> list[Message]:
    """Return the messages in a tool's input or output field.

    A text, or an object that is not a message, becomes one message of `role`.

    Raises:
        DataError: a list holds something that is neither an object nor a text.
    """
    if isinstance(value, Mapping) and not (_is_message(value) or _is_item(value)):
        for wrapper in _WRAPPERS:
            if value.get(wrapper):
                # The system prompt comes first, wherever it was stored.
                return _system_of(value) + messages_from(value[wrapper], role=role)
    if isinstance(value, list | tuple):
        messages = [message for inner in value for message in _messages_in(inner, role)]
        # Only items are pieces of an answer; messages are whole.
        return joined(messages) if any(map(_is_item, value)) else messages
    return [] if value is None else list(_messages_in(value, role))


def joined(messages: Sequence[Message], *, pieces_only: bool = False) -> list[Message]:
    """Merge messages that are pieces of one answer into one message.

    The Responses API, and the tracers that record it, make a message of each thought, text and call
    of an answer.

    Args:
        messages: The messages.
        pieces_only: Whether texts that follow one another are answers, so that only thoughts
            and calls without a text are joined to their neighbours.
    """
    from_assistant = [message.get("role") == "assistant" for message in messages]
    # Most conversations alternate, so nothing is copied for them.
    if not any(map(and_, from_assistant, from_assistant[1:])):
        return list(messages)
    whole: list[Message] = []
    for message in messages:
        last = whole[-1] if whole else None
        both = last is not None and last.get("role") == message.get("role") == "assistant"
        if both and last is not None and not (pieces_only and _apart(last, message)):
            whole[-1] = _join(last, message)
        else:
            whole.append(message)
    return whole


def _apart(first: Message, second: Message) -> bool:
    """Return whether two assistant messages are separate answers, not pieces of one."""
    only_thought = not first.get("content") and not first.get("tool_calls")
    only_calls = not second.get("content") and bool(second.get("tool_calls"))
    return not (only_thought or only_calls)


def _join(first: Message, second: Message) -> Message:
    # The first piece wins, since it carries the answer's id and role.
    message = {**second, **first}
    contents = [part for part in (first.get("content"), second.get("content")) if part]
    if contents and all(isinstance(content, str) for content in contents):
        message["content"] = "\n".join(contents)
    elif contents:
        message["content"] = [
            part
            for content in contents
            for part in (content if isinstance(content, list) else [text_part(content)])
        ]
    if calls := [*(first.get("tool_calls") or ()), *(second.get("tool_calls") or ())]:
        message["tool_calls"] = calls
        message["content"] = message.get("content") or None
    thoughts = [first.get("reasoning_content"), second.get("reasoning_content")]
    if thought := "\n".join(filter(None, thoughts)):
        message["reasoning_content"] = thought
    return message


def _system_of(value: Mapping[str, Any]) -> list[Message]:
    """Return a request's system prompt, if it is stored outside the messages."""
    for name, beside in (("instructions", "input"), ("system", "messages")):
        prompt = value.get(name)
        if beside in value and isinstance(prompt, str | list) and prompt:
            return message_from({"role": "system", "content": prompt})
    return []


def _messages_in(value: object, role: str) -> Iterator[Message]:
    if isinstance(value, Mapping):
        if _is_item(value):
            yield _of_item(value)
        elif _is_message(value):
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
    split = Split()
    if isinstance(content, list):
        for part in content:
            split.take(part)
    rest = {
        key: value
        for key, value in given.items()
        if key not in _TAKEN and value not in (None, {}) and not _is_bookkeeping(key, given)
    }
    # A message of nothing but results needs no message of its author.
    if split.results and not (split.content or split.calls or split.thoughts):
        return split.results
    message: dict[str, Any] = {
        "role": who,
        "content": _content(content, split),
    }
    if not _CALLED.isdisjoint(given):
        # Only where a field may hold calls, as looking is slow for large files.
        split.add_calls(list(map(call_from, _calls(given))))
    if split.calls:
        message["tool_calls"] = split.calls
    if thought := _thought(given, split):
        message["reasoning_content"] = thought
    return [*split.results, message | rest]


def _is_bookkeeping(key: str, given: Mapping[str, Any]) -> bool:
    """Return whether a field only says how a message was stored or streamed."""
    if key == "id":
        langchain = "response_metadata" in given or "additional_kwargs" in given
        return langchain or given.get("type") == "message"
    return key in {"status", "phase"} and given.get("type") == "message"


def _of_item(item: Mapping[str, Any]) -> Message:
    """Convert an item of the Responses API to a message."""
    kind = str(item["type"])
    if kind.endswith("_output"):
        content = result_content(item.get("output"))
        return {"role": "tool", "tool_call_id": str(item.get("call_id") or ""), "content": content}
    if kind == "reasoning":
        thought = thought_in(item)
        return {"role": "assistant", "content": "", "reasoning_content": thought}
    return {"role": "assistant", "content": None, "tool_calls": [call_from(item)]}


def _plain(given: Mapping[str, Any], who: str) -> Message | None:
    """Return a message that is only text, the most common case in large files, or None."""
    parts = given.get("parts")
    if not isinstance(parts, list):
        content = given.get("content")
        if content.__class__ is str and given.keys() <= _PLAIN:
            # A result that is a list of blocks, written as text.
            if who == "tool" and content.startswith("[{"):
                content = result_content(content)
            return {**given, "role": who, "content": content}
    elif len(parts) == 1 and len(given) == 2:  # noqa: SIM102 - one question a line
        if isinstance(only := parts[0], dict) and only.get("type") == "text" and len(only) == 2:
            return {"role": who, "content": only.get("content")}
    return None


def tools_from(value: object) -> list[Message] | None:
    """Return tool definitions in OpenAI's form; None if there are no tools."""
    given = decode_json(value) if isinstance(value, str) else value
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str):
        return None
    tools = [_tool(tool) for tool in given if isinstance(tool, str | Mapping)]
    return tools or None


def _content(given: object, split: Split) -> object:
    """Return the content of a message, as a string if it contains only one text."""
    if not isinstance(given, list):
        return given if given is None or isinstance(given, str) else as_text(given)
    if not split.content:
        return None if split.calls or split.thoughts else ""
    if len(split.content) == 1 and split.content[0].keys() == {"type", "text"}:
        return split.content[0]["text"]
    return split.content


def _calls(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # In order of preference: the newest form first.
    calls = given.get("tool_calls")
    if not calls and isinstance(more := given.get("additional_kwargs"), Mapping):
        calls = more.get("tool_calls")
    if not calls and isinstance(function := given.get("function_call"), Mapping):
        calls = [function]
    if isinstance(calls, Mapping):
        calls = list(calls.values())
    found_calls = [*calls] if isinstance(calls, list) else []
    if isinstance(broken := given.get("invalid_tool_calls"), list):
        found_calls += broken  # LangChain's name for calls whose arguments are not JSON
    return [call for call in found_calls if isinstance(call, Mapping)]


def _thought(given: Mapping[str, Any], split: Split) -> str:
    more = given.get("additional_kwargs")
    parts = (
        given.get("reasoning_content"),
        given.get("reasoning"),
        more.get("reasoning_content") if isinstance(more, Mapping) else None,
    )
    return next(
        (text for text in parts if isinstance(text, str) and text), "\n".join(split.thoughts)
    )


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
        # LangChain names a message by its class, such as AIMessageChunk.
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


def _is_item(value: object) -> bool:
    """Return whether a value is a Responses API item other than a message."""
    if not isinstance(value, Mapping) or "role" in value:
        return False
    kind = value.get("type")
    return isinstance(kind, str) and (
        (kind in _ITEMS and not {"content", "data"} & value.keys())
        or kind == "reasoning"
        # Calls of tools that OpenAI's server runs are items too, such as web_search_call.
        or (kind.endswith(("_call", "_call_output")) and ("id" in value or "call_id" in value))
    )


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
_ITEMS = frozenset(
    {"function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"}
)
_CALLED = frozenset({"tool_calls", "additional_kwargs", "function_call", "invalid_tool_calls"})
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
        "tool_call_chunks",
        "chunk_position",
        "example",
    }
)
"""Fields of a message that are converted separately, or that are not part of its text."""
