"""Extracts the prompt and the answers of a model call from a span of any known dialect.

    OpenTelemetry 1.37 and later   gen_ai.input.messages, gen_ai.output.messages: JSON with parts;
                                   on the span, or on its event ...operation.details
    pydantic-ai                    the same with `thinking`, `result`, arguments as text
    OpenLLMetry, AgentOps          gen_ai.prompt.0.role ..., gen_ai.completion.0.role ...
    OpenInference                  llm.input_messages.0.message.role ...
    OpenTelemetry 1.28 to 1.36     one event per message: gen_ai.user.message, gen_ai.choice
    Langfuse's SDK                 langfuse.observation.input, langfuse.observation.output
                                   (OpenInference without messages: input.value, output.value)

Not here: everything else about a call (`facts.py`).
A new dialect also needs `is_call` and `_RELEVANT` in `facts.py`, and `_IN_FIELDS` in `span.py`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from orbiter.train.chat.dialects import joined, message_from, messages_from, tools_from
from orbiter.train.chat.message import Message
from orbiter.train.chat.parts import call_from
from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.json_files.records import decode_json
from orbiter.train.tracing.span import Attributes, Piece, Rows, Span, SpanEvent

CHATS = 8
"""The number of chats of a trace that are remembered, so that they are not read again."""


Known = dict[tuple[object, ...], list[Message]]
"""The messages of a trace, keyed by the attributes they were read from."""
Chats = tuple[list[Message], list[Message]]
"""The messages of the prompt, and the messages of the answers."""


class CallContent(NamedTuple):
    """The content of one model call."""

    prompt: list[Message]
    answers: list[Message]
    """One message per choice; empty if the call failed."""
    tools: list[Message] | None = None


class Memory:
    """The content of the earlier calls of a trace, so that a growing chat is read only once.

    A message that occurs in several calls is one object.
    """

    def __init__(self) -> None:
        self.known: Known = {}
        """The messages read from attributes that hold one message each."""
        self._chats: deque[tuple[str, list[Message]]] = deque(maxlen=CHATS)

    def chat(self, text: str) -> list[Message]:
        """Return the messages in a JSON array that may start like a recent one.

        Raises:
            DataError: it is not JSON, or does not hold messages.
        """
        # The longest known beginning wins: the less there is left to read.
        begun, messages = "", list[Message]()
        for chat in self._chats:
            # What is remembered ends before the closing bracket, so a longer chat starts with it.
            if len(chat[0]) > len(begun) and text.startswith(chat[0]):
                begun, messages = chat
        # Without messages the memory is an empty array, from which nothing can continue.
        rest = text[len(begun) :] if messages else ""
        # Only whole messages were added; anything else is read from the start.
        if rest.startswith(","):
            messages = messages + _as_messages(decode_json("[" + rest[1:]), "user")
        elif rest != "]":
            messages = _as_messages(decode_json(text), "user")
        self._chats.appendleft((text.rstrip().removesuffix("]").rstrip(), messages))
        return messages


def content_of_call(span: Span, memory: Memory) -> CallContent | None:
    """Return the content of a model call; None if the tracer did not record it.

    Args:
        span: The span of the call.
        memory: The memory of its trace.

    Raises:
        DataError: an attribute does not have the form of its dialect; the message names it.
    """
    attributes, spread = span.attributes, span.spread
    # The order matters: tracers write several dialects at once for compatibility, and this one is
    # the most complete.
    if "gen_ai.input.messages" in attributes or "gen_ai.output.messages" in attributes:
        return _opentelemetry(attributes, memory)
    if "gen_ai.prompt." in spread or "gen_ai.completion." in spread:
        return CallContent(*openllmetry_chats(span, memory.known), openllmetry_tools(span))
    if "llm.input_messages." in spread or "llm.output_messages." in spread:
        prompt, answers = openinference_chats(span, memory.known)
        return CallContent(
            joined(prompt, pieces_only=True),
            _answers(answers, attributes),
            openinference_tools(span),
        )
    # Whole values come after the dialects with messages, since they may be cut or reshaped for
    # display.
    if "langfuse.observation.input" in attributes or "langfuse.observation.output" in attributes:
        return _whole_values(attributes, "langfuse.observation.")
    if "input.value" in attributes or "output.value" in attributes:
        return _whole_values(attributes, "", ".value")
    return _from_events(attributes, span.events)


def _opentelemetry(attributes: Attributes, memory: Memory) -> CallContent:
    prompt: list[Message] = []
    if (system := _read(attributes, "gen_ai.system_instructions")) is not None:
        parts = system if isinstance(system, list) else [system]
        prompt += message_from({"role": "system", "parts": parts})
    input_messages = attributes.get("gen_ai.input.messages")
    try:
        prompt += (
            memory.chat(input_messages)
            if isinstance(input_messages, str)
            else _as_messages(input_messages, "user")
        )
    except DataError as error:
        raise _named("gen_ai.input.messages", error) from error
    output_messages = _read(attributes, "gen_ai.output.messages")
    try:
        answers = _as_messages(output_messages, "assistant")
    except DataError as error:
        raise _named("gen_ai.output.messages", error) from error
    return CallContent(
        # Some tracers write the calls of one answer as several messages.
        joined(prompt, pieces_only=True),
        _answers(answers, attributes),
        tools_from(_read(attributes, "gen_ai.tool.definitions")),
    )


def _answers(messages: list[Message], attributes: Attributes) -> list[Message]:
    """Return one message per choice; some tracers split one answer into several messages."""
    # Several choices are several answers; otherwise they are pieces of one.
    if len(messages) < 2 or _choices(attributes) > 1:
        return messages
    whole = attributes.get("output.value")
    # The Responses API gives one answer as several items, all of which belong together.
    from_responses = isinstance(whole, str) and _RESPONSE.search(whole) is not None
    return joined(messages, pieces_only=not from_responses)


def _choices(attributes: Attributes) -> int:
    """Return the number of choices that a call asked for."""
    count = attributes.get("gen_ai.request.choice.count")
    if count is None:
        parameters = _read_if_json(attributes.get("llm.invocation_parameters"))
        count = parameters.get("n") if isinstance(parameters, Mapping) else None
    return count if isinstance(count, int) else 1


def _whole_values(attributes: Attributes, before: str, after: str = "") -> CallContent:
    """Read a call with one attribute for its input and one for its output, in a vendor's form."""
    request = _read_if_json(attributes.get(f"{before}input{after}"))
    tools = request.get("tools") if isinstance(request, dict) else None
    answer = _read_if_json(attributes.get(f"{before}output{after}"))
    return CallContent(
        messages_from(request), messages_from(answer, role="assistant"), tools_from(tools)
    )


def _from_events(attributes: Attributes, events: Sequence[SpanEvent]) -> CallContent | None:
    prompt: list[Message] = []
    answers: list[Message] = []
    has_messages = False
    for event in events:
        body = event.attributes
        # Semantic conventions 1.37: one event with everything, in the attributes' own form.
        if event.name == "gen_ai.client.inference.operation.details":
            # A new memory, because an event's values are nested and not text that could grow.
            return _opentelemetry({**attributes, **body}, Memory())
        if event.name == "gen_ai.choice":
            messages = _message_of_event(_read_if_json(body.get("message", body)), "assistant")
            reason = {"finish_reason": body["finish_reason"]} if "finish_reason" in body else {}
            answers += [{**message, **reason} for message in messages]
        elif event.name in _MESSAGE_EVENTS:
            prompt += _message_of_event(body, _MESSAGE_EVENTS[event.name])
        elif event.name == "gen_ai.content.prompt":
            prompt += messages_from(_read_if_json(body.get("gen_ai.prompt")))
        elif event.name == "gen_ai.content.completion":
            completion = _read_if_json(body.get("gen_ai.completion"))
            answers += messages_from(completion, role="assistant")
        else:
            continue
        # An event with empty content still shows that content was recorded.
        has_messages = True
    tools = tools_from(_read(attributes, "gen_ai.tool.definitions"))
    return CallContent(prompt, answers, tools) if has_messages else None


def _message_of_event(body: object, role: str) -> list[Message]:
    if not isinstance(body, Mapping):
        return messages_from(body, role=role)
    given = {key: _read_if_json(value) for key, value in body.items() if key in _EVENT_FIELDS}
    # A text that looks like JSON is still the text of the message.
    if isinstance(content := body.get("content"), str):
        given["content"] = content
    if role == "tool" and isinstance(identifier := body.get("id"), str):
        given["tool_call_id"] = identifier
    calls = given.get("tool_calls")
    if isinstance(calls, list):
        given["tool_calls"] = [call_from(call) for call in calls if isinstance(call, Mapping)]
    return message_from(given, role=role)


def _as_messages(given: object, role: str) -> list[Message]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise DataError(f"expected messages, got {fields.shown(given)}")
    return [message for entry in given for message in message_from(entry, role=role)]


def _read(attributes: Attributes, name: str) -> Any:  # noqa: ANN401 - any JSON
    """Return an attribute that holds JSON, either as text or as nested OTLP values."""
    value = attributes.get(name)
    if not isinstance(value, str):
        return value
    try:
        return decode_json(value)
    except DataError as error:
        raise _named(name, error) from error


def _named(attribute: str, error: DataError) -> DataError:
    """Return an error that names the attribute."""
    # msgspec says "truncated"; limits on attributes are the usual cause.
    cut = "; was it cut at a limit for the length of attributes?" if "trunc" in str(error) else ""
    return DataError(f"attribute {attribute!r}: {error}{cut}")


def _read_if_json(value: object) -> Any:  # noqa: ANN401 - any JSON
    """Decode a text that is a JSON object or array; return any other value unchanged."""
    # A plain text such as "12" or "null" is what the user wrote, not JSON.
    if not (isinstance(value, str) and value.lstrip()[:1] in {"{", "["}):
        return value
    try:
        return decode_json(value)
    except DataError:
        return value


_RESPONSE = re.compile(r'"object":\s?"response"')
"""Marks the answer of the Responses API, which has no choices."""
_MESSAGE_EVENTS = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
_EVENT_FIELDS = frozenset({"role", "content", "tool_calls", "name", "refusal"})


# OpenLLMetry and OpenInference spread the messages over attributes, one for each field.


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
        # OpenLLMetry writes the schema as text, since attributes cannot be nested.
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
    definitions = [_below(_nested(piece.rows), "tool") for piece in span.numbered("llm.tools.")]
    return tools_from([tool["json_schema"] for tool in definitions if "json_schema" in tool])


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
    messages: list[Message] = []
    for piece in pieces:
        # Spans with a common start share the piece, so it is read for all of them.
        if piece.messages is None:
            piece.messages = _messages_of(piece.rows, known, read, role)
        messages += piece.messages
    return messages


def _messages_of(
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
    """Build nested objects from attributes whose names contain dots.

    Raises:
        DataError: a name is both a value and a prefix of another name.
    """
    root: dict[str, Any] = {}
    for key, value in rows.items():
        path = _path(key)
        if len(path) == 1:
            root[key] = value
            continue
        node = root
        *above, last = path
        for name in above:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise DataError(f"a prefix of attribute {key!r} is also an attribute with a value")
        node[last] = value
    return root


@lru_cache(maxsize=1 << 12)
def _path(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


def _in_order(by_number: Mapping[str, Any]) -> list[Any]:
    # Sorted as numbers: as texts, 10 would come before 2.
    numbers = [key for key in by_number if key.isascii() and key.isdigit() and len(key) < 10]
    return [by_number[key] for key in sorted(numbers, key=int)]


def _openllmetry(given: dict[str, Any]) -> dict[str, Any]:
    message = dict(given)
    if isinstance(calls := message.pop("tool_calls", None), dict):
        message["tool_calls"] = _in_order(calls)
    content = given.get("content")
    # A list of parts that the tracer wrote as text; a user's own JSON has no types in it.
    if isinstance(content, str) and content.startswith('[{"'):
        message["content"] = _parts(content)
    return message


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
    converted = {key: given[key] for key in given if key not in {"contents", "tool_calls"}}
    contents, calls = given.get("contents"), given.get("tool_calls")
    if isinstance(contents, dict):
        converted["content"] = list(map(_openinference_part, _in_order(contents)))
    if isinstance(calls, dict):
        converted["tool_calls"] = [_below(call, "tool_call") for call in _in_order(calls)]
    if isinstance(name := converted.pop("function_call_name", None), str):
        arguments = converted.pop("function_call_arguments_json", "{}")
        converted["function_call"] = {"name": name, "arguments": arguments}
    return converted


def _openinference_part(given: object) -> dict[str, Any]:
    """Return one part of a message's content.

    Raises:
        DataError: its attributes do not say what it is.
    """
    part, call = _below(given, "message_content"), _below(given, "tool_call")
    if call:  # the same call may be below `message.tool_calls` too
        return {**call, "type": "tool_call"}
    image = _below(part.get("image"), "image")
    if part.get("type") == "image" and "url" in image:
        return {"type": "image_url", "image_url": {"url": image["url"]}}
    if "type" not in part:
        names = ", ".join(sorted(given)) if isinstance(given, dict) else fields.shown(given)
        raise DataError(f"a part of 'message.contents' has no known type; its fields are: {names}")
    return part


def _below(given: object, name: str) -> dict[str, Any]:
    inner = given.get(name) if isinstance(given, dict) else None
    return inner if isinstance(inner, dict) else {}
