"""Convert the parts of a message to OpenAI's form: texts, images, thoughts, calls and results.

The forms of OpenAI's two APIs, of OpenTelemetry, Anthropic and LangChain are understood. Not here:
whole messages (`dialects.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import as_json
from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json


@dataclass(slots=True)
class Split:
    """The parts of a message, sorted by kind."""

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
        if kind in _TEXTS:
            self.content.append(text_part(part))
        elif kind in {"reasoning", "thinking"}:
            self.thoughts.append(thought_in(part))
        elif kind in _FUNCTION_CALLS or kind == "custom_tool_call":
            self.calls.append(call_from(part))
        elif kind in {"tool_call_response", "tool_result"}:
            self.results.append(_result(part))
        else:
            self.content.append(_image(part) or dict(part))

    def add_calls(self, calls: list[Message]) -> None:
        """Add the calls of the message; its content may hold the same ones, less complete."""
        # LangChain stores the calls of Anthropic's models twice: as blocks of the content and in
        # `tool_calls`.
        ids = {call.get("id") for call in calls}
        functions = [call.get("function") for call in calls]
        self.calls = [
            call
            for call in self.calls
            if (call.get("id") not in ids if "id" in call else call["function"] not in functions)
        ] + calls


def call_from(given: Mapping[str, Any]) -> Message:
    """Return one tool call in OpenAI's form, whichever form it has.

    A call of a custom tool stays a custom call, and a call that the API's server ran itself is kept
    unchanged.
    """
    kind = str(given.get("type"))
    identifier = given.get("call_id") or given.get("id")
    named = {"id": identifier} if isinstance(identifier, str) else {}
    custom = given.get("custom")
    if kind == "custom_tool_call" or isinstance(custom, Mapping):
        body = custom if isinstance(custom, Mapping) else given
        inner = {"name": str(body.get("name") or ""), "input": as_text(body.get("input"))}
        return {"type": "custom", **named, "custom": inner}
    # For instance web_search_call: the server ran it, so it has no arguments for a tool of ours.
    if kind.endswith("_call") and kind not in _FUNCTION_CALLS:
        return {**given, **named}
    function = given.get("function")
    body = function if isinstance(function, Mapping) else given
    arguments: object = body.get("arguments", body.get("args", body.get("input", _NONE)))
    if not arguments and isinstance(partial := body.get("partial_json"), str):
        arguments = partial  # a streamed block of Anthropic's, as LangChain adds it up
    call: dict[str, Any] = {"type": "function", **named}
    name = body.get("name")
    call["function"] = {
        "name": name if isinstance(name, str) else "",
        "arguments": arguments if isinstance(arguments, str) else as_json(arguments),
    }
    return call


def as_text(value: object) -> str:
    """Return a string unchanged, and any other value as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else fields.encode(value).decode()


def text_part(part: object) -> Message:
    """Return a text part in OpenAI's form, without the fields about how it was sent."""
    if not isinstance(part, Mapping):
        return {"type": "text", "text": as_text(part)}
    text = part.get("text", part.get("content"))
    rest = {
        key: part[key]
        for key in part
        if key not in _OF_TEXT and not (key in _OF_OUTPUT and not part[key])
    }
    return {"type": "text", "text": as_text(text), **rest}


def thought_in(part: Mapping[str, Any]) -> str:
    """Return the text of a thought: a text, or a list of parts, or that list as JSON."""
    values = (part.get(key) for key in ("content", "thinking", "text", "reasoning", "summary"))
    value = next(filter(None, values), "")
    # OpenTelemetry's instrumentations of the Responses API record the summary as JSON text.
    if isinstance(value, str) and value.startswith('[{"') and '"summary_text"' in value:
        value = decode_json(value)
    if isinstance(value, list):
        texts = [inner.get("text") for inner in value if isinstance(inner, Mapping)]
        return "\n".join(text for text in texts if isinstance(text, str) and text)
    return as_text(value)


def result_content(value: object) -> object:
    """Return the result of a tool: a string, or a list of parts if it holds more than text."""
    # Attributes of a span hold texts only, so a list of parts arrives as JSON.
    if isinstance(value, str) and value.startswith("[{"):
        try:
            inner = decode_json(value)
        except DataError:
            return value  # the result is a text that only looks like parts
        if not (isinstance(inner, list) and all(_is_block(part, _BLOCKS) for part in inner)):
            return value
        value = inner
    if isinstance(value, list) and value and all(map(_is_block, value)):
        parts = [
            text_part(part) if part["type"] in _TEXTS else _image(part) or part for part in value
        ]
        plain = len(parts) == 1 and parts[0].keys() == {"type", "text"}
        return parts[0]["text"] if plain else parts
    return as_text(value)


def _result(part: Mapping[str, Any]) -> Message:
    results = (part[key] for key in ("response", "result", "content") if key in part)
    message: dict[str, Any] = {"role": "tool", "content": result_content(next(results, None))}
    identifier = part.get("id", part.get("tool_use_id"))
    if isinstance(identifier, str):
        message["tool_call_id"] = identifier
    if isinstance(name := part.get("name"), str):
        message["name"] = name
    if part.get("is_error"):
        message["is_error"] = True
    return message


def _image(part: Mapping[str, Any]) -> Message | None:
    """Return an image in OpenAI's form, whichever form it has; None for anything else."""
    url = _address_of(part)
    return None if url is None else {"type": "image_url", "image_url": {"url": url}}


def _address_of(part: Mapping[str, Any]) -> str | None:
    """Return the address of an image, or its bytes as an address; None if it is no image."""
    kind, source = part.get("type"), part.get("source")
    if kind == "input_image":  # OpenAI's Responses
        url = part.get("image_url")
        return url if isinstance(url, str) else None
    if part.get("modality") == "image":  # OpenTelemetry
        body, data, url = part, part.get("content"), part.get("uri")
        if kind not in {"uri", "blob"}:
            return None
    elif kind == "image":  # Anthropic, or LangChain
        body = source if isinstance(source, Mapping) else part
        data, url = body.get("data", body.get("base64")), body.get("url")
    else:
        return None
    if isinstance(url, str):
        return url
    # Tracers replace long data by a note, which is no image.
    if not isinstance(data, str) or "REDACTED" in data:
        return None
    media = body.get("media_type") or body.get("mime_type") or "application/octet-stream"
    return f"data:{media};base64,{data}"


def _is_block(value: object, kinds: frozenset[str] | None = None) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        return False
    return kinds is None or value["type"] in kinds


_NONE: Message = {}
_TEXTS = frozenset({"text", "input_text", "output_text"})
_FUNCTION_CALLS = frozenset({"tool_call", "tool_use", "function_call", "toolCall"})
_BLOCKS = _TEXTS | {"image", "image_url", "input_image", "document", "input_file", "file"}
"""Types of parts that the result of a tool may have."""
_OF_TEXT = frozenset({"type", "text", "content", "index", "id"})
_OF_OUTPUT = frozenset({"annotations", "logprobs", "citations", "parsed"})
"""Fields of a text that the APIs always send, mostly empty."""
