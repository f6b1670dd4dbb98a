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

from orbiter.train.chat.foreign_calls import CALL_TYPES, OpenCalls, call_in, calls_in, decoded
from orbiter.train.chat.message import text_of
from orbiter.train.errors import DataError, did_you_mean
from orbiter.train.json_files import fields

CALL = "call"
"""The value in `SPEAKERS` for a message whose content is a call, or a list of calls, as JSON."""
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
    # As written first, since the table holds the usual spelling.
    role = SPEAKERS.get(speaker) or SPEAKERS.get(speaker.lower())
    if role is None:
        raise DataError(
            f"{name}: unknown role {fields.shown(speaker)}{did_you_mean(speaker, SPEAKERS)}; "
            f"known roles: {', '.join(SPEAKERS)}"
        )
    return role


def normal_messages(value: object, name: str = "messages") -> list[dict[str, Any]]:
    """Return the messages of a chat in OpenAI's form.

    A message may become several, since a result inside it becomes a separate message; calls that
    have a message to themselves are merged into the assistant's text before them.

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


@dataclass(slots=True)
class _SortedBlocks:
    """The blocks of a message's content, sorted by kind."""

    kept: list[Any] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    signed: list[Any] = field(default_factory=list)
    """Blocks of reasoning that text alone cannot represent: signed or encrypted."""

    def take(self, block: object, name: str) -> None:
        """Sort in one block."""
        # Some files mix texts and blocks in one list.
        if isinstance(block, str):
            block = {"type": "text", "text": block}
        if not isinstance(block, Mapping):
            raise DataError(f"{name} must be text or a block, got {fields.shown(block)}")
        kind = block.get("type")
        word = kind if isinstance(kind, str) else ""
        if word in _TEXTS or (kind is None and isinstance(block.get("text"), str)):
            self.kept.append(_text_block(block, name))
        elif word in CALL_TYPES:
            self.calls.append(call_in(block, name))
        elif word in _RESULTS:
            self.results.append(_result(block, name))
        elif word in _THOUGHTS:
            self._add_thought(block, name)
        elif word in _MEDIA or word.endswith(_SERVER_BLOCKS):
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

    def _add_thought(self, block: Mapping[str, Any], name: str) -> None:
        texts = [block[key] for key in ("thinking", "reasoning", "text", "content") if key in block]
        if texts and not isinstance(texts[0], str):
            raise DataError(f"{name}: reasoning must be text, got {fields.shown(texts[0])}")
        self.thoughts.append(texts[0] if texts else "")
        # A signature is only valid with the block it came in, so the whole block is kept.
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
            self._add_typed(message, name)
            return
        role = role_of(message.get("role", message.get("from")), name)
        content = message.get("content", message.get("value"))
        # ShareGPT's `function_call` turns hold nothing but the call.
        if role == CALL:
            self._add_calls(content, message, name)
        elif isinstance(content, str) and message.keys() <= _PLAIN and message["role"] == role:
            self._add(dict(message))
        else:
            self._add_any(role, content, message, name)

    def _add_typed(self, message: Mapping[str, Any], name: str) -> None:
        """Add a message with a type in place of a role: LangChain's, or an item of Responses."""
        kind = message.get("type")
        rest = {key: value for key, value in message.items() if key != "type"}
        if kind == "function_call":
            self._add_calls(message, {}, name)
        elif kind == "function_call_output":
            result = {
                "type": kind,
                "content": rest.get("output"),
                "tool_call_id": rest.get("call_id"),
            }
            self._add(_result(result, name))
        elif isinstance(kind, str) and kind in SPEAKERS and "content" in message:
            self.take({"role": kind, **rest}, name)
        else:
            raise DataError(f"{name} must have a role, got {fields.shown(message)}")

    def _add_calls(self, content: object, message: Mapping[str, Any], name: str) -> None:
        """Add a message that is only calls to the assistant's message before it."""
        calls = calls_in(content, f"{name}.content")
        last = self.messages[-1] if self.messages else {}
        # Training weights apply to a whole message, so only equal ones are joined.
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

    def _add_any(self, role: str, content: object, message: Mapping[str, Any], name: str) -> None:
        parts = _parts_of(content, name)
        is_answer = role == "assistant"
        only_results = bool(parts.results) and not (parts.kept or parts.calls or parts.thoughts)
        # A user's results answer the calls before them, so they come before the user's text.
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
        # Unknown fields stay: a later export to the same format writes them again.
        self._add({"role": role, "content": _content(content, parts), **rest})

    def _calls(
        self, message: Mapping[str, Any], parts: _SortedBlocks, name: str
    ) -> list[dict[str, Any]]:
        """Return the calls in a message: OpenAI's, its old form, and Anthropic's blocks."""
        given = message.get("tool_calls")
        calls = list(parts.calls)
        if isinstance(given, str) and given.strip():
            given = decoded(given, f"{name}: tool_calls must be a list")
        if given:
            if not isinstance(given, list | tuple):
                raise DataError(
                    f"{name}: tool_calls must be a list of objects, got {fields.shown(given)}"
                )
            calls += [
                call_in(call, f"{name}.tool_calls[{index}]") for index, call in enumerate(given)
            ]
        old = message.get("function_call")
        # Some logs copy the request's setting "auto" into the message.
        if old and old not in _CHOICES:
            old_calls = [call_in(old, f"{name}.function_call")]
            self._open.give(old_calls)
            calls += old_calls
        return calls

    def _add_all(self, messages: Sequence[dict[str, Any]]) -> None:
        for message in messages:
            self._add(message)

    def _add(self, message: dict[str, Any]) -> None:
        if message["role"] == "tool" and message.get("tool_call_id") is None:
            # By name first, since an old-style result has a name but no id.
            answered = self._open.take(name=message.get("name")) or self._open.take()
            if answered:
                message["tool_call_id"] = answered[0]
        self.messages.append(message)


def _answer(
    content: object,
    message: Mapping[str, Any],
    parts: _SortedBlocks,
    calls: list[dict[str, Any]],
    name: str,
) -> dict[str, Any]:
    """Return a message of the assistant, with its calls and its reasoning."""
    given = {key: value for key, value in message.items() if value is not None}
    answer: dict[str, Any] = {"role": "assistant", "content": _content(content, parts)}
    if calls:
        # OpenAI writes null, not "", where there are only calls.
        answer["content"] = answer["content"] or None
        answer["tool_calls"] = calls
    reasoning_key = next((key for key in _REASONING if isinstance(given.get(key), str)), None)
    if reasoning_key is not None or parts.thoughts:
        answer["reasoning_content"] = (
            given[reasoning_key] if reasoning_key else "".join(parts.thoughts)
        )
    if parts.signed:
        answer["thinking_blocks"] = parts.signed
    rest = {key: given[key] for key in given if key not in _TAKEN and key != reasoning_key}
    # An explicit null is an empty answer; a message without the field is a mistake in the file.
    if answer["content"] is None and len(answer) == 2 and not rest.keys() - {"weight", "name"}:
        if "content" not in message and "value" not in message:
            raise DataError(f"{name} has neither content nor calls")
        answer["content"] = ""
    return answer | rest


def _parts_of(content: object, name: str) -> _SortedBlocks:
    parts = _SortedBlocks()
    if isinstance(content, list | tuple):
        for index, block in enumerate(content):
            parts.take(block, f"{name}.content[{index}]")
    elif content is not None and not isinstance(content, str):
        raise DataError(f"{name}: content must be text or parts, got {fields.shown(content)}")
    return parts


def _content(given: object, parts: _SortedBlocks) -> object:
    """Return the content that is left once calls, results and reasoning are taken out."""
    if not isinstance(given, list | tuple):
        return given
    if not parts.foreign:
        return parts.kept
    # OpenAI's tools expect a string where there is only text.
    if all(part.get("type") == "text" for part in parts.kept):
        return text_of(parts.kept)
    return parts.kept


def _text_block(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    text = block.get("text", block.get("content"))
    if not isinstance(text, str):
        raise DataError(f"{name}: a text block must have a text, got {fields.shown(block)}")
    rest = {key: block[key] for key in block if key not in _TEXT_TAKEN and block[key] is not None}
    return {"type": "text", "text": text, **rest}


def _result(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    content = next((block[key] for key in ("content", "response", "result") if key in block), "")
    if isinstance(content, list):
        parts = _SortedBlocks()
        for index, inner in enumerate(content):
            parts.take(inner, f"{name}.content[{index}]")
        # OpenAI's tool message has only text and media.
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
_RESULTS = frozenset({"tool_result", "tool_call_response", "function_call_output"})
_THOUGHTS = frozenset({"thinking", "reasoning", "redacted_thinking"})
_KNOWN = sorted(_TEXTS | _MEDIA | CALL_TYPES | _RESULTS | _THOUGHTS)
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_TAKEN = frozenset({"type", "text", "content"})
_CHOICES = ("auto", "none")
"""Values of `function_call` in a request, which some logs copy into its messages."""
_PLAIN = frozenset({"role", "content", "tool_call_id", "weight"})
"""The fields of most messages; a message with these alone needs no conversion."""
_TAKEN = frozenset({"role", "from", "content", "value", "tool_calls", "function_call"})
