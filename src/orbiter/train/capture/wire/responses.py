"""Convert OpenAI's Responses API to the form of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orbiter.train.chat.message import Json, Message, text_of
from orbiter.train.chat.reply import Fields, Reply, Unreadable, counts, decode
from orbiter.train.chat.tool_calls import custom_call, function_call

TERMINAL = tuple(
    f'"type":{space}"response.{end}"'.encode()
    for end in ("completed", "incomplete", "failed", "cancelled")
    for space in ("", " ")
)
"""Byte patterns, one of which is in the last event of a stream."""

_USAGE = {
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "cached_tokens": ("input_tokens_details", "cached_tokens"),
    "reasoning_tokens": ("output_tokens_details", "reasoning_tokens"),
}
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_LAST = frozenset(f"response.{end}" for end in ("completed", "incomplete", "failed", "cancelled"))
_PENDING = frozenset({"queued", "in_progress"})
_FOR_THE_AGENT = frozenset({"computer_call", "local_shell_call", "shell_call", "apply_patch_call"})
"""Calls of tools that OpenAI defines and the agent executes."""


def accepts(fields: Fields, *, certain: bool) -> bool:
    """Return whether a request has the shape of a response request.

    Args:
        fields: The request's top level.
        certain: Whether the host and the path alone identify OpenAI's API.
    """
    given = bytes(fields.get("input") or b"").lstrip()[:1]
    # A request that continues a stored conversation may have no input at all.
    named = not fields.keys().isdisjoint({"previous_response_id", "conversation", "prompt"})
    if given not in {b'"', b"["} and not named:
        return False
    return certain or "model" in fields or "prompt" in fields


def parts(fields: Fields) -> list[msgspec.Raw | bytes]:
    """Return the conversation of a request, item by item, the instructions first."""
    pieces: list[msgspec.Raw | bytes] = []
    instructions = fields.get("instructions")
    if instructions is not None and bytes(instructions) != b"null":
        pieces.append(b'{"role":"system","content":%b}' % bytes(instructions))
    given = fields.get("input")
    if given is None or bytes(given) == b"null":
        return pieces
    # Only the first byte is looked at: the input may be megabytes of items.
    if bytes(given).lstrip()[:1] == b"[":
        return [*pieces, *_LIST.decode(given)]
    return [*pieces, b'{"role":"user","content":%b}' % bytes(given)]


def chat(items: list[Json]) -> list[Message]:
    """Return items as messages: the calls of one turn are in one message with its text."""
    messages: list[dict[str, Any]] = []
    for item in items:
        _add(messages, item)
    return [*messages]


def tools(given: Json) -> list[Message]:
    """Return tools in the form of chat completions; one of OpenAI's own keeps its form."""
    return (
        [_tool(tool) for tool in given if isinstance(tool, dict)] if isinstance(given, list) else []
    )


def reply(body: Json) -> Reply:
    """Parse a complete response, or one that is still being computed.

    Raises:
        Unreadable: it is not a response.
    """
    output = body.get("output") if isinstance(body, dict) else None
    status = body.get("status") if isinstance(body, dict) else None
    # In the background: the answer is fetched later by its id.
    if output is None and status in _PENDING:
        output = []
    if not isinstance(output, list):
        raise Unreadable(f"not a response: {str(body)[:120]}")
    output = [item for item in output if isinstance(item, dict)]
    text_parts = [part for item in _of(output, "message") for part in _parts_of(item)]
    answer = Reply(
        text=text_of(text_parts),
        tool_calls=[call for item in output if (call := _call(item)) is not None],
        server_calls=[_server_call(item) for item in output if _is_server_call(item)],
        # Each thought is an item; their order is that of the output.
        reasoning="\n".join([_thought(item) for item in _of(output, "reasoning")]),
        response_id=body.get("id"),
        model=body.get("model"),
        finish_reason=_finish_reason(body),
        usage=counts(body.get("usage"), _USAGE),
        error=str(body["error"]) if body.get("error") else None,
        pending=status in _PENDING,
    )
    logprobs = [
        entry
        for part in text_parts
        if isinstance(part, dict)
        for entry in part.get("logprobs") or ()
    ]
    if logprobs:
        answer.logprobs = [float(entry["logprob"]) for entry in logprobs]
        # This API gives no token ids, so the texts are kept to find them by.
        answer.logprob_tokens = [str(entry.get("token", "")) for entry in logprobs]
    return answer


def assemble(events: Iterable[Json]) -> Reply:
    """Take the complete response from a stream's last event, or the partial one if it broke off.

    Some servers leave the output of the last event empty; then the streamed items are used.
    """
    head: dict[str, Any] = {}
    output = _Output()
    error: str | None = None
    for event in events:
        kind = str(event.get("type"))
        if kind in _LAST:
            body = event["response"]
            # The fields of earlier events fill what the last one leaves out.
            return reply(body if body.get("output") else {**head, **body, "output": output.items()})
        if kind in {"response.created", "response.queued", "response.in_progress"}:
            head = {**head, **event["response"]}
        elif kind == "error":
            error = str(event.get("message") or event.get("error"))
        else:
            output.take(kind, event)
    answer = reply(head | {"output": output.items(), "error": None, "status": None})
    answer.error, answer.finish_reason, answer.pending = error, None, False
    return answer


def previous(fields: Fields) -> str | None:
    """Return the id of the response or conversation that a request continues, if it names one."""
    for name in ("previous_response_id", "conversation"):
        value = decode(fields[name]) if name in fields else None
        if isinstance(value, dict):
            value = value.get("id")
        if isinstance(value, str) and value:
            return value
    return None


class _Output:
    """The items of a streamed answer, built up from its events."""

    def __init__(self) -> None:
        self._slots: list[_StreamedItem] = []

    def take(self, kind: str, event: Json) -> None:
        """Take one event; events that are not about an item are ignored."""
        index = event.get("output_index")
        if kind in {"response.output_item.added", "response.output_item.done"}:
            item = event["item"]
            slot = self._slot(index, item.get("id"), begins=kind.endswith("added"))
            # The item of the end event is whole, and replaces what the deltas built up.
            slot.item, slot.done = {**slot.item, **item}, kind.endswith("done")
        elif kind in _TEXT_DELTAS:
            holder, part_type = _TEXT_DELTAS[kind]
            item = self._slot(index, event.get("item_id")).item
            item.setdefault("type", "reasoning" if "reasoning" in kind else "message")
            _grow_text(item, holder, part_type, event)
        elif kind in _FIELD_DELTAS:
            item_type, field = _FIELD_DELTAS[kind]
            item = self._slot(index, event.get("item_id")).item
            item.setdefault("type", item_type)
            item[field] = (item.get(field) or "") + event["delta"]
        elif kind in _FIELD_ENDS:
            item_type, field = _FIELD_ENDS[kind]
            item = self._slot(index, event.get("item_id")).item
            item.setdefault("type", item_type)
            # The end event repeats the whole text, in case a delta was lost.
            if isinstance(event.get(field), str):
                item[field] = event[field]

    def items(self) -> list[dict[str, Any]]:
        """Return the items in index order, or in order of appearance without indices."""
        slots = self._slots
        if all(isinstance(slot.index, int) for slot in slots):
            slots = sorted(slots, key=lambda slot: slot.index)
        return [slot.item for slot in slots]

    def _slot(self, index: object, item_id: object, *, begins: bool = False) -> _StreamedItem:
        """Return the item that an event is about; servers repeat or omit indices."""
        for slot in reversed(self._slots):
            # The id is decisive. An index may be used again for the next item by servers that count
            # wrong.
            same_id = item_id is not None and slot.item.get("id") == item_id
            same_index = index is not None and slot.index == index
            if same_id or (same_index and not (slot.done and item_id != slot.item.get("id"))):
                return slot
            # With neither, an event can only be about the item in progress.
            if index is None and item_id is None and not begins and not slot.done:
                return slot
        self._slots.append(_StreamedItem(index, {} if item_id is None else {"id": item_id}))
        return self._slots[-1]


class _StreamedItem:
    """One item of a streamed answer."""

    def __init__(self, index: Any, item: dict[str, Any]) -> None:  # noqa: ANN401 - from JSON
        self.index, self.item, self.done = index, item, False


_TEXT_DELTAS = {
    "response.output_text.delta": ("content", "output_text"),
    "response.refusal.delta": ("content", "refusal"),
    "response.reasoning_text.delta": ("content", "reasoning_text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_text"),
}
"""Events that extend a text: the item's field that holds the part, and the part's type."""
_FIELD_DELTAS = {
    "response.function_call_arguments.delta": ("function_call", "arguments"),
    "response.custom_tool_call_input.delta": ("custom_tool_call", "input"),
    "response.mcp_call_arguments.delta": ("mcp_call", "arguments"),
    "response.code_interpreter_call_code.delta": ("code_interpreter_call", "code"),
}
_FIELD_ENDS = {
    kind.removesuffix("delta") + "done": fields for kind, fields in _FIELD_DELTAS.items()
}


def _grow_text(item: dict[str, Any], holder: str, part_type: str, event: Json) -> None:
    # A copy, since the item may be the event's own object.
    parts = item[holder] = list(item.get(holder) or ())
    index = event.get("content_index", event.get("summary_index"))
    position = (
        # A gap in the indices would need parts that never came.
        index if isinstance(index, int) and 0 <= index <= len(parts) else max(len(parts) - 1, 0)
    )
    field = "refusal" if part_type == "refusal" else "text"
    if position == len(parts):
        parts.append({"type": part_type, field: ""})
    parts[position] = {
        **parts[position],
        field: (parts[position].get(field) or "") + event["delta"],
    }


def _add(messages: list[dict[str, Any]], item: Json) -> None:
    """Add one item of a conversation to its messages."""
    if isinstance(item, str):
        item = {"role": "user", "content": item}
    kind = item.get("type", "message")
    # A call is a separate item here; in OpenAI's chat form it is part of the answer.
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"))})
    elif (call := _call(item)) is not None:
        if last is None:
            messages.append(last := {"role": "assistant", "content": None})
        last.setdefault("tool_calls", []).append(call)
    elif kind.endswith("_call_output"):
        output = _content(item.get("output"))
        result = output if isinstance(output, str | list) else text_of(output)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": result})
    elif kind != "reasoning":  # reasoning belongs to the reply that it came with
        messages.append({"role": "assistant", "content": [item]})


def _content(content: Json) -> Json:
    """Return content as one text if it contains only text."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return text_of(content)
    return content


def _tool(tool: Json) -> Message:
    if tool.get("type") != "function" or "function" in tool:
        return dict(tool)
    inner = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": inner}


def _call(item: Json) -> Message | None:
    """Return a call for the agent to execute; None for any other item."""
    kind, call_id = str(item.get("type")), item.get("call_id") or item.get("id")
    if kind == "function_call":
        return function_call(call_id, item.get("name"), item.get("arguments") or "")
    if kind == "custom_tool_call":
        return custom_call(call_id, item.get("name"), item.get("input"))
    if kind in _FOR_THE_AGENT:
        # Each of OpenAI's tools has another name for its input.
        what = item.get("action", item.get("operation", item.get("actions", {})))
        return {**function_call(call_id, kind.removesuffix("_call"), what), "raw": item}
    return None


def _is_server_call(item: Json) -> bool:
    kind = str(item.get("type"))
    # The name ends the same way for calls of both sides; what the agent does not run, the server
    # did.
    return kind == "mcp_approval_request" or (kind.endswith("_call") and _call(item) is None)


def _server_call(item: Json) -> Json:
    """Return a call that the server executed itself, with the original item."""
    kind = str(item["type"])
    arguments = next(
        (item[key] for key in ("arguments", "action", "queries", "code", "input") if key in item),
        None,
    )
    name = item.get("name") or kind.removesuffix("_call")
    return {"name": str(name), "arguments": arguments, "raw": [item]}


def _thought(item: Json) -> str:
    return "\n".join([text_of(item.get("summary")), text_of(item.get("content"))]).strip()


def _parts_of(item: Json) -> list[Json]:
    content = item.get("content")
    return content if isinstance(content, list) else [content or ""]


def _finish_reason(body: Json) -> str | None:
    details = body.get("incomplete_details") or {}
    reason = details.get("reason") or body.get("status")
    return str(reason) if reason else None


def _of(output: list[Json], kind: str) -> list[Json]:
    return [item for item in output if item.get("type") == kind]
