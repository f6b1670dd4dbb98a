"""Reads the two dialects that spread messages over attributes: OpenLLMetry and OpenInference.

    gen_ai.prompt.0.role, gen_ai.completion.0.tool_calls.0.name, llm.request.functions.0.name
    llm.input_messages.0.message.role, llm.output_messages.0.message.tool_calls.0.tool_call.id

Not here: the single attributes of both dialects (`facts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from orbiter.train.chat.dialects import message_from, tools_from
from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.json_files.records import decode_json
from orbiter.train.tracing.span import Piece, Rows, Span

Known = dict[tuple[object, ...], list[Message]]
"""The messages of a trace, keyed by the attributes they were read from."""
Chats = tuple[list[Message], list[Message]]
"""The prompt of the model, and its answers."""


def openllmetry_chats(span: Span, known: Known) -> Chats:
    """Return the messages below `gen_ai.prompt.` and below `gen_ai.completion.`."""
    return (
        _messages(span.numbered("gen_ai.prompt."), known, _openllmetry, "user"),
        _messages(span.numbered("gen_ai.completion."), known, _openllmetry, "assistant"),
    )


def openllmetry_tools(span: Span) -> list[Message] | None:
    """Return the tools below `llm.request.functions.`."""
    tools = []
    for piece in span.numbered("llm.request.functions."):
        given = _nested(piece.rows)
        parameters = given.get("parameters")
        schema = decode_json(parameters) if isinstance(parameters, str) else parameters
        tools.append(given | {"parameters": schema} if schema is not None else given)
    return tools_from(tools)


def openinference_chats(span: Span, known: Known) -> Chats:
    """Return the messages below `llm.input_messages.` and below `llm.output_messages.`."""
    return (
        _messages(span.numbered("llm.input_messages."), known, _openinference, "user"),
        _messages(span.numbered("llm.output_messages."), known, _openinference, "assistant"),
    )


def openinference_tools(span: Span) -> list[Message] | None:
    """Return the tools below `llm.tools.`."""
    found = [_below(_nested(piece.rows), "tool") for piece in span.numbered("llm.tools.")]
    return tools_from([tool["json_schema"] for tool in found if "json_schema" in tool])


def openinference_scores(span: Span) -> Iterator[dict[str, Any]]:
    """Yield the scores below `evaluations.` and `annotations.`."""
    for piece in span.numbered("evaluations."):
        yield _below(_nested(piece.rows), "evaluation")
    for piece in span.numbered("annotations."):
        yield _below(_nested(piece.rows), "annotation")


def _messages(
    pieces: list[Piece],
    known: Known,
    read: Callable[[dict[str, Any]], Mapping[str, Any]],
    role: str,
) -> list[Message]:
    """Return messages; one that occurred in an earlier call of the trace is the same object."""
    found: list[Message] = []
    for piece in pieces:
        if piece.said is None:
            piece.said = _said(piece.rows, known, read, role)
        found += piece.said
    return found


def _said(
    rows: Rows, known: Known, read: Callable[[dict[str, Any]], Mapping[str, Any]], role: str
) -> list[Message]:
    # The default role is part of the key only if the message does not name its role.
    key = (None if "role" in rows or "message.role" in rows else role, *rows.items())
    try:
        messages = known.get(key)
    except TypeError:  # an attribute is a list, which cannot be a key
        return message_from(read(_nested(rows)), role=role)
    if messages is None:
        messages = known[key] = message_from(read(_nested(rows)), role=role)
    return messages


def _nested(rows: Rows) -> dict[str, Any]:
    """Nest attributes by the dots in their names.

    Raises:
        DataError: a name is both a value and a prefix of another name.
    """
    found: dict[str, Any] = {}
    for key, value in rows.items():
        way = _way(key)
        if len(way) == 1:
            found[key] = value
            continue
        place = found
        *above, last = way
        for step in above:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise DataError(f"a prefix of attribute {key!r} is also an attribute with a value")
        place[last] = value
    return found


@lru_cache(maxsize=1 << 12)
def _way(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


def _in_order(found: Mapping[str, Any]) -> list[Any]:
    places = [key for key in found if key.isascii() and key.isdigit() and len(key) < 10]
    return [found[key] for key in sorted(places, key=int)]


def _openllmetry(given: dict[str, Any]) -> dict[str, Any]:
    told = dict(given)
    if isinstance(calls := told.pop("tool_calls", None), dict):
        told["tool_calls"] = _in_order(calls)
    content = given.get("content")
    if isinstance(content, str) and content.startswith('[{"'):
        told["content"] = _parts(content)
    return told


def _parts(content: str) -> object:
    """Decode content that was a list of parts; return other content unchanged."""
    try:
        parts = decode_json(content)
    except DataError:
        return content
    whole = isinstance(parts, list) and all(isinstance(part, dict) for part in parts)
    return parts if whole and all("type" in part for part in parts) else content


def _openinference(message: dict[str, Any]) -> dict[str, Any]:
    given = _below(message, "message")
    told = {key: given[key] for key in given if key not in {"contents", "tool_calls"}}
    contents, calls = given.get("contents"), given.get("tool_calls")
    if isinstance(contents, dict):
        told["content"] = list(map(_openinference_part, _in_order(contents)))
    if isinstance(calls, dict):
        told["tool_calls"] = [_below(call, "tool_call") for call in _in_order(calls)]
    if isinstance(name := told.pop("function_call_name", None), str):
        arguments = told.pop("function_call_arguments_json", "{}")
        told["function_call"] = {"name": name, "arguments": arguments}
    return told


def _openinference_part(given: object) -> dict[str, Any]:
    part = _below(given, "message_content")
    image = _below(part.get("image"), "image")
    if part.get("type") == "image" and "url" in image:
        return {"type": "image_url", "image_url": {"url": image["url"]}}
    return part


def _below(given: object, name: str) -> dict[str, Any]:
    inner = given.get(name) if isinstance(given, dict) else None
    return inner if isinstance(inner, dict) else {}
