"""Convert the chats of data files to OpenAI's form; refuse unknown roles, blocks and calls.

Every importer of chats uses this file, so that a role or a block means the same in each format. It
understands OpenAI's messages (the old `function_call` too), Anthropic's blocks, and the roles of
ShareGPT and ms-swift. A refusal names the message and the unknown word. Not here: the messages
inside traces (`dialects.py`), which are never refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orbiter.train.chat.message import Message, text_of
from orbiter.train.chat.tool_calls import arguments_text, function_call
from orbiter.train.errors import DataError, did_you_mean
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json

CALL = "call"
"""What `SPEAKERS` says of a message whose content is a call, or a list of calls, as JSON."""
SPEAKERS: Mapping[str, str] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "bot"), "assistant"
    ),
    **dict.fromkeys(
        (
            "tool",
            "function",
            "observation",
            "observations",
            "tool_response",
            "tool_result",
            "function_response",
            "ipython",
        ),
        "tool",
    ),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
"""The role in OpenAI's form for each role or speaker that data files use, in lower case."""


def role_of(speaker: object, name: str) -> str:
    """Return the role that a file's word for a speaker stands for, or `CALL`.

    Raises:
        DataError: the word is unknown.
    """
    if not isinstance(speaker, str):
        raise DataError(f"{name} must have a role, got {fields.shown(speaker)}")
    role = SPEAKERS.get(speaker) or SPEAKERS.get(speaker.lower())
    if role is None:
        raise DataError(
            f"{name}: unknown role {fields.shown(speaker)}{did_you_mean(speaker, SPEAKERS)}; "
            f"known roles: {', '.join(SPEAKERS)}"
        )
    return role


def normal_messages(value: object, name: str = "messages") -> list[dict[str, Any]]:
    """Return the messages of a chat in OpenAI's form.

    A message may become several, since a result inside it becomes a separate message; calls in
    messages by themselves are joined to the assistant's text before them.

    Args:
        value: A list of messages, as decoded from JSON.
        name: What error messages call the list.

    Raises:
        DataError: it is not a list of at least one message, or a message is invalid or has a role,
            block or call that is unknown; the message names it.
    """
    if not isinstance(value, list | tuple):
        raise DataError(f"{name} must be a list of messages, got {fields.shown(value)}")
    if not value:
        raise DataError(f"{name} is empty: expected at least one message")
    chat = _Chat()
    for index, message in enumerate(value):
        chat.take(message, f"{name}[{index}]")
    return chat.messages


def calls_in(value: object, name: str) -> list[dict[str, Any]]:
    """Return the calls in a text, or decoded JSON, that is one call or a list of calls.

    Raises:
        DataError: it is anything else; the message begins with `name`.
    """
    if isinstance(value, str):
        value = _decoded(value, f"{name} must be a call as JSON")
    given = value if isinstance(value, list) else [value]
    if not given:
        raise DataError(f"{name} must be a call, or a list of calls, got {fields.shown(value)}")
    return [
        _call(call, f"{name}[{index}]" if isinstance(value, list) else name)
        for index, call in enumerate(given)
    ]


def normal_tools(value: object, name: str = "tools") -> list[Message] | None:
    """Return the tools on offer in OpenAI's form; None if there are none.

    Some files store them as JSON text. Anthropic's tools and bare functions are wrapped; the tools
    of an API's server, which have only a type, stay as they are.

    Raises:
        DataError: they are not a list of objects, or one has neither a name nor a type.
    """
    if isinstance(value, str):
        value = _decoded(value, f"{name} must be a list") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"{name} must be a list of objects, got {fields.shown(value)}")
    return [_tool(tool, f"{name}[{index}]") for index, tool in enumerate(value)]


class OpenCalls:
    """Assigns ids to calls that have none, and matches results with the calls they answer."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[tuple[str, str]] = []
        """The id and the name of each call that still waits for its result."""

    def coming(self, count: int) -> list[str]:
        """Return the ids that the next calls will get."""
        return [f"call_{self._count + index}" for index in range(count)]

    def give(self, calls: list[dict[str, Any]]) -> None:
        """Assign ids to calls; results answer calls in order."""
        for call, made in zip(calls, self.coming(len(calls)), strict=True):
            call.setdefault("id", made)
        self._count += len(calls)
        self._open = [(str(call["id"]), _name_in(call)) for call in calls]

    def add(self, calls: list[dict[str, Any]]) -> None:
        """Assign ids to calls that are made beside those before."""
        before = self._open
        self.give(calls)
        self._open = before + self._open

    def take(self, count: int = 1, name: object = None) -> list[str]:
        """Return the ids of the calls that the next results answer.

        Args:
            count: The number of results.
            name: The tool that gave the results, if it is known.
        """
        mine = [call for call in self._open if not isinstance(name, str) or call[1] == name]
        taken = mine[:count]
        self._open = [call for call in self._open if call not in taken]
        return [call_id for call_id, _ in taken]


@dataclass(slots=True)
class _Parts:
    """The blocks of a message's content, sorted by kind."""

    kept: list[Any] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    signed: list[Any] = field(default_factory=list)
    """Blocks of reasoning that are more than their text: signed or encrypted."""

    def take(self, block: object, name: str) -> None:
        """Sort in one block."""
        if isinstance(block, str):
            block = {"type": "text", "text": block}
        if not isinstance(block, Mapping):
            raise DataError(f"{name} must be text or a block, got {fields.shown(block)}")
        kind = block.get("type")
        if kind in _TEXTS or (kind is None and isinstance(block.get("text"), str)):
            self.kept.append(_text_block(block, name))
        elif kind in _CALLS:
            self.calls.append(_call(block, name))
        elif kind in _RESULTS:
            self.results.append(_result(block, name))
        elif kind in _THOUGHTS:
            self._take_thought(block, name)
        elif kind in _MEDIA or str(kind).endswith(_SERVER_BLOCKS):
            self.kept.append({key: value for key, value in block.items() if value is not None})
        else:
            raise DataError(
                f"{name}: unknown block type {fields.shown(kind)}"
                f"{did_you_mean(str(kind), _KNOWN)}; known types: {', '.join(_KNOWN)}"
            )

    @property
    def foreign(self) -> bool:
        """Whether there was a block that OpenAI's form stores outside of the content."""
        return bool(self.calls or self.results or self.thoughts or self.signed)

    def _take_thought(self, block: Mapping[str, Any], name: str) -> None:
        texts = [block[key] for key in ("thinking", "reasoning", "text", "content") if key in block]
        if texts and not isinstance(texts[0], str):
            raise DataError(f"{name}: reasoning must be text, got {fields.shown(texts[0])}")
        self.thoughts.append(texts[0] if texts else "")
        if block.keys() & {"signature", "data"}:
            self.signed.append(dict(block))


class _Chat:
    """The messages of one chat, converted in order."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._open = OpenCalls()

    def take(self, message: object, name: str) -> None:
        """Convert one message and add it."""
        if not isinstance(message, Mapping):
            raise DataError(f"{name} must be an object, got {fields.shown(message)}")
        if "role" not in message and "from" not in message:
            raise DataError(f"{name} must have a role, got {fields.shown(message)}")
        role = role_of(message.get("role", message.get("from")), name)
        content = message.get("content", message.get("value"))
        if role == CALL:
            self._take_calls(content, message, name)
        elif isinstance(content, str) and message.keys() <= _PLAIN and message["role"] == role:
            self._add(dict(message))
        else:
            self._take_any(role, content, message, name)

    def _take_calls(self, content: object, message: Mapping[str, Any], name: str) -> None:
        """Add a message that is only calls to the assistant's message before it."""
        calls = calls_in(content, f"{name}.content")
        last = self.messages[-1] if self.messages else {}
        joins = last.get("role") == "assistant" and last.get("weight") == message.get("weight")
        if joins and last.get("tool_calls"):
            self._open.add(calls)
            last["tool_calls"] = [*last["tool_calls"], *calls]
            return
        self._open.give(calls)
        if joins:
            last["content"] = last.get("content") or None
            last["tool_calls"] = calls
            return
        rest = {key: message[key] for key in message if key not in _TAKEN}
        self.messages.append({"role": "assistant", "content": None, "tool_calls": calls, **rest})

    def _take_any(self, role: str, content: object, message: Mapping[str, Any], name: str) -> None:
        parts = _parts_of(content, name)
        is_answer = role == "assistant"
        only_results = bool(parts.results) and not (parts.kept or parts.calls or parts.thoughts)
        if only_results or not is_answer:
            self._add_all(parts.results)
        if only_results:
            return
        calls = self._calls(message, parts, name)
        if is_answer:
            self._add(_answer(content, message, parts, calls, name))
            self._add_all(parts.results)
            return
        if calls or parts.thoughts:
            raise DataError(f"{name}: only the assistant calls tools and reasons, not {role}")
        if content is None and role != "tool":
            raise DataError(f"{name} has no content, got {fields.shown(message)}")
        rest = {
            key: value for key, value in message.items() if key not in _TAKEN and value is not None
        }
        self._add({"role": role, "content": _content(content, parts), **rest})

    def _calls(self, message: Mapping[str, Any], parts: _Parts, name: str) -> list[dict[str, Any]]:
        """Return the calls in a message: OpenAI's, its old form, and Anthropic's blocks."""
        given = message.get("tool_calls")
        calls = list(parts.calls)
        if isinstance(given, str) and given.strip():
            given = _decoded(given, f"{name}: tool_calls must be a list")
        if given:
            if not isinstance(given, list | tuple):
                raise DataError(
                    f"{name}: tool_calls must be a list of objects, got {fields.shown(given)}"
                )
            calls += [
                _call(call, f"{name}.tool_calls[{index}]") for index, call in enumerate(given)
            ]
        old = message.get("function_call")
        if old and old not in _CHOICES:
            made = [_call(old, f"{name}.function_call")]
            self._open.give(made)
            calls += made
        return calls

    def _add_all(self, messages: Sequence[dict[str, Any]]) -> None:
        for message in messages:
            self._add(message)

    def _add(self, message: dict[str, Any]) -> None:
        if message["role"] == "tool" and message.get("tool_call_id") is None:
            answered = self._open.take(name=message.get("name")) or self._open.take()
            if answered:
                message["tool_call_id"] = answered[0]
        self.messages.append(message)


def _answer(
    content: object,
    message: Mapping[str, Any],
    parts: _Parts,
    calls: list[dict[str, Any]],
    name: str,
) -> dict[str, Any]:
    """Return a message of the assistant, with its calls and its reasoning."""
    given = {key: value for key, value in message.items() if value is not None}
    made: dict[str, Any] = {"role": "assistant", "content": _content(content, parts)}
    if calls:
        made["content"] = made["content"] or None
        made["tool_calls"] = calls
    taken = next((key for key in _REASONING if isinstance(given.get(key), str)), None)
    if taken is not None or parts.thoughts:
        made["reasoning_content"] = given[taken] if taken else "".join(parts.thoughts)
    if parts.signed:
        made["thinking_blocks"] = parts.signed
    rest = {key: given[key] for key in given if key not in _TAKEN and key != taken}
    if made["content"] is None and len(made) == 2 and not rest.keys() - {"weight", "name"}:
        if "content" not in message and "value" not in message:
            raise DataError(f"{name} has neither content nor calls")
        made["content"] = ""
    return made | rest


def _parts_of(content: object, name: str) -> _Parts:
    parts = _Parts()
    if isinstance(content, list | tuple):
        for index, block in enumerate(content):
            parts.take(block, f"{name}.content[{index}]")
    elif content is not None and not isinstance(content, str):
        raise DataError(f"{name}: content must be text or parts, got {fields.shown(content)}")
    return parts


def _content(given: object, parts: _Parts) -> object:
    """Return the content that is left once calls, results and reasoning are taken out."""
    if not isinstance(given, list | tuple):
        return given
    if not parts.foreign:
        return parts.kept
    if all(part.get("type") == "text" for part in parts.kept):
        return text_of(parts.kept)
    return parts.kept


def _decoded(text: str, claim: str) -> object:
    """Decode JSON text; an error begins with what the text should be."""
    try:
        return decode_json(text, unique=True)
    except DataError as error:
        raise DataError(f"{claim}: {error}") from error


def _tool(tool: Message, name: str) -> Message:
    if isinstance(tool.get("function"), Mapping):
        return tool
    if "input_schema" in tool:
        kept = {key: tool[key] for key in ("name", "description") if tool.get(key) is not None}
        return {"type": "function", "function": {**kept, "parameters": tool["input_schema"]}}
    if isinstance(tool.get("name"), str) and tool.get("type") in (None, "function"):
        function = {key: value for key, value in tool.items() if key != "type"}
        return {"type": "function", "function": function}
    if not isinstance(tool.get("type"), str):
        raise DataError(f"{name} has neither a name nor a type, got {fields.shown(tool)}")
    return tool


def _text_block(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    text = block.get("text", block.get("content"))
    if not isinstance(text, str):
        raise DataError(f"{name}: a text block must have a text, got {fields.shown(block)}")
    rest = {key: block[key] for key in block if key not in _TEXT_TAKEN and block[key] is not None}
    return {"type": "text", "text": text, **rest}


def _call(call: object, name: str) -> dict[str, Any]:
    """Return a call in OpenAI's form, whichever known form it has."""
    if not isinstance(call, Mapping):
        raise DataError(f"{name} must be a call, got {fields.shown(call)}")
    given = {key: value for key, value in call.items() if value is not None}
    kind, function, custom = given.get("type"), given.get("function"), given.get("custom")
    if isinstance(function, Mapping):
        text = arguments_text(_arguments_in(function))
        rest = {key: value for key, value in function.items() if key not in _ARGUMENTS}
        called = {**rest, "name": _named(function, name), "arguments": text}
        return {**given, "type": "function", "function": called}
    if isinstance(custom, Mapping):
        if not isinstance(custom.get("input"), str):
            raise DataError(f"{name}: the input of a custom call must be text, got {custom!r:.80}")
        _named(custom, name)
        return {**given, "type": "custom"}
    if isinstance(given.get("name"), str) and kind in _FLAT:
        made = function_call(None, _named(given, name), _arguments_in(given))
        call_id = given.get("id", given.get("call_id", given.get("tool_call_id")))
        return {**({} if call_id is None else {"id": str(call_id)}), **_without_id(made)}
    if isinstance(kind, str) and kind not in _FLAT and kind.endswith(_SERVER_CALLS):
        return given
    raise DataError(
        f"{name}: unknown call {fields.shown(call)}: expected a function or a custom tool with its "
        "name"
    )


def _named(holder: Mapping[str, Any], name: str) -> str:
    called = holder.get("name")
    if not isinstance(called, str) or not called:
        raise DataError(f"{name}: a call must name its tool, got {fields.shown(called)}")
    return called


def _arguments_in(holder: Mapping[str, Any]) -> object:
    return next((holder[key] for key in _ARGUMENTS if holder.get(key) is not None), None)


def _without_id(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key != "id"}


def _name_in(call: Mapping[str, Any]) -> str:
    holder = call.get("function") or call.get("custom") or call
    return str(holder.get("name") or "") if isinstance(holder, Mapping) else ""


def _result(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    content = next((block[key] for key in ("content", "response", "result") if key in block), "")
    if isinstance(content, list):
        parts = _Parts()
        for index, inner in enumerate(content):
            parts.take(inner, f"{name}.content[{index}]")
        if parts.foreign:
            raise DataError(f"{name}: a tool result cannot hold calls, results or reasoning")
        plain = all(part.get("type") == "text" for part in parts.kept)
        content = text_of(parts.kept) if plain else parts.kept
    elif not isinstance(content, str):
        content = "" if content is None else fields.encode(content).decode()
    message: dict[str, Any] = {"role": "tool", "content": content}
    call_id = block.get("tool_use_id", block.get("tool_call_id", block.get("id")))
    if call_id is not None:
        message["tool_call_id"] = str(call_id)
    if isinstance(block.get("name"), str):
        message["name"] = block["name"]
    return message | ({"is_error": True} if block.get("is_error") else {})


_TEXTS = frozenset({"text", "input_text", "output_text"})
_MEDIA = frozenset(
    {
        "refusal",
        *("image", "image_url", "input_image"),
        *("audio", "audio_url", "input_audio"),
        *("video", "video_url", "input_video"),
        *("file", "input_file", "document", "search_result", "container_upload"),
    }
)
"""Blocks that stay in the content as they are."""
_SERVER_BLOCKS = ("_tool_use", "_tool_result")
"""Type endings of Anthropic's blocks about tools that its server ran; they stay in the content."""
_SERVER_CALLS = "_call"
"""Type ending of OpenAI's calls that its server ran, such as `web_search_call`; they stay as is."""
_CALLS = frozenset({"tool_use", "tool_call", "function_call"})
_RESULTS = frozenset({"tool_result", "tool_call_response", "function_call_output"})
_THOUGHTS = frozenset({"thinking", "reasoning", "redacted_thinking"})
_KNOWN = sorted(_TEXTS | _MEDIA | _CALLS | _RESULTS | _THOUGHTS)
_FLAT = frozenset({None, "function", *_CALLS})
"""The types of calls whose name and arguments are not in an object of their own."""
_ARGUMENTS = ("arguments", "args", "input", "parameters")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_TAKEN = frozenset({"type", "text", "content"})
_CHOICES = ("auto", "none")
"""Values of `function_call` in a request, which some logs copy into its messages."""
_PLAIN = frozenset({"role", "content", "tool_call_id", "weight"})
"""The fields of most messages; a message with these alone needs no conversion."""
_TAKEN = frozenset({"role", "from", "content", "value", "tool_calls", "function_call"})
