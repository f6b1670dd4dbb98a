"""Converts single items of the Responses API, as Codex logs them, to parts of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.chat.tool_calls import custom_call, function_call
from orbiter.train.errors import DataError
from orbiter.train.formats.sessions.folder import array_in, as_object
from orbiter.train.formats.sessions.log import Facts, with_plain_text
from orbiter.train.json_files.records import decode_object


def call_of(kind: str, item: Mapping[str, Any]) -> Message | None:
    """Return a call in OpenAI's form; None if the item is not a call."""
    call_id = item.get("call_id") or item.get("id")
    if kind == "function_call":
        return function_call(call_id, item.get("name"), item.get("arguments"))
    if kind == "custom_tool_call":
        return custom_call(call_id, item.get("name"), item.get("input"))
    if kind == "local_shell_call":
        return function_call(call_id, "local_shell", item.get("action"))
    if kind.endswith("_call"):  # a tool that the server ran itself
        return {**item, "id": str(call_id or "")}
    return None


def part_of(part: object) -> dict[str, Any]:
    """Return a part of a message's content in OpenAI's form."""
    if not isinstance(part, dict):
        return {"type": "text", "text": str(part)}
    if part.get("type") in ("input_text", "output_text", "text"):
        return {"type": "text", "text": str(part.get("text") or "")}
    if part.get("type") == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    return part


def thoughts_of(item: Mapping[str, Any]) -> list[str]:
    """Return the readable thoughts of an item; most are encrypted and only have a summary."""
    parts = array_in(item, "content") or array_in(item, "summary")
    texts = [as_object(part).get("text") for part in parts]
    return [text for text in texts if isinstance(text, str) and text]


def output_of(output: object) -> tuple[object, Facts]:
    """Return the result of a call and what is known about the run of the tool."""
    # Codex's own shell writes its result as JSON in a text, with exit code and duration.
    if isinstance(output, str) and output.startswith('{"output":'):
        try:
            output = decode_object(output.encode())
        except DataError:
            return output, {}
    if isinstance(output, list):
        message = with_plain_text({"content": [part_of(part) for part in output]})
        return message["content"], {}
    if not isinstance(output, dict):
        return "" if output is None else str(output), {}
    about = as_object(output.get("metadata"))
    content = output.get("content", output.get("output"))
    # A missing exit code says nothing; 0 is success.
    failed = output.get("success") is False or bool(about.get("exit_code"))
    run: Facts = {
        "exit_code": about.get("exit_code"),
        "seconds": about.get("duration_seconds"),
        "error": True if failed else None,
    }
    if isinstance(content, list):
        content = with_plain_text({"content": [part_of(part) for part in content]})["content"]
    return content if isinstance(content, str | list) else "", run


def list_in(item: Mapping[str, Any], name: str) -> list[Any]:
    """Return the parts in a field of an item; a text is one part.

    Raises:
        DataError: the field is neither a text nor a list.
    """
    value = item.get(name)
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if not isinstance(value, list):
        raise DataError(f"field {name!r}: expected a list")
    return value
