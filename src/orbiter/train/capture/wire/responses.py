"""OpenAI's Responses, put into the form of a chat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orbiter.train.chat.reply import (
    Fields,
    Json,
    Message,
    Reply,
    Unreadable,
    counts,
    decode,
    tool_call,
)
from orbiter.train.chat.transcript import text_of

TERMINAL = tuple(
    f'"type":{space}"response.{end}"'.encode()
    for end in ("completed", "incomplete", "failed")
    for space in ("", " ")
)
"""What the last event of a stream holds."""

_USAGE = {
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "cached_tokens": ("input_tokens_details", "cached_tokens"),
    "reasoning_tokens": ("output_tokens_details", "reasoning_tokens"),
}
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def parts(fields: Fields) -> list[msgspec.Raw | bytes]:
    """Return the conversation of a request, item by item, the instructions first."""
    found: list[msgspec.Raw | bytes] = []
    instructions = fields.get("instructions")
    if instructions is not None and bytes(instructions) != b"null":
        found.append(b'{"role":"system","content":%b}' % bytes(instructions))
    given = fields.get("input")
    if given is None:
        return found
    if bytes(given).lstrip()[:1] == b"[":
        return [*found, *_LIST.decode(given)]
    return [*found, b'{"role":"user","content":%b}' % bytes(given)]


def chat(items: list[Json]) -> list[Message]:
    """Return items as messages: the calls of one turn stand in one message with its text."""
    messages: list[Message] = []
    for item in items:
        _add(messages, item)
    return messages


def tools(given: Json) -> list[Message]:
    """Return tools as chat completions have them; one of OpenAI's own keeps its form."""
    return [_tool(tool) for tool in given] if isinstance(given, list) else []


def reply(body: Json) -> Reply:
    """Read a whole response.

    Raises:
        Unreadable: it is no response.
    """
    output = body.get("output") if isinstance(body, dict) else None
    if not isinstance(output, list):
        raise Unreadable(f"no response: {str(body)[:120]}")
    said = [part for item in _of(output, "message") for part in item.get("content") or ()]
    answer = Reply(
        text=text_of(said),
        tool_calls=[_call(item) for item in _of(output, "function_call")],
        reasoning="\n".join([_thought(item) for item in _of(output, "reasoning")]),
        response_id=body.get("id"),
        model=body.get("model"),
        finish_reason=_finish_reason(body),
        usage=counts(body.get("usage"), _USAGE),
        error=str(body["error"]) if body.get("error") else None,
    )
    logprobs = [entry for part in said for entry in part.get("logprobs") or ()]
    if logprobs:
        answer.logprobs = [float(entry["logprob"]) for entry in logprobs]
        answer.logprob_tokens = [str(entry.get("token", "")) for entry in logprobs]
    return answer


def assemble(events: Iterable[Json]) -> Reply:
    """Take the whole response from a stream's last event, or what there is of a broken one."""
    head: dict[str, Any] = {}
    items: dict[int, dict[str, Any]] = {}
    error: str | None = None
    for event in events:
        kind, index = str(event.get("type")), event.get("output_index", 0)
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            return reply(event["response"])
        if kind == "response.created":
            head = event["response"]
        elif kind in {"response.output_item.added", "response.output_item.done"}:
            items[index] = dict(event["item"])
        elif kind == "response.output_text.delta":
            _grow_text(items.setdefault(index, {"type": "message"}), event["delta"])
        elif kind == "response.function_call_arguments.delta":
            call = items.setdefault(index, {"type": "function_call"})
            call["arguments"] = (call.get("arguments") or "") + event["delta"]
        elif kind == "error":
            error = str(event.get("message") or event.get("error"))
    answer = reply(head | {"output": [items[index] for index in sorted(items)], "error": None})
    answer.error, answer.finish_reason = error, None
    return answer


def previous(fields: Fields) -> str | None:
    """Return the id of the response that this request goes on from, if it names one."""
    found = decode(fields["previous_response_id"]) if "previous_response_id" in fields else None
    return found if isinstance(found, str) else None


def _add(messages: list[Message], item: Json) -> None:
    kind = item.get("type", "message")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"))})
    elif kind == "function_call":
        if last is None:
            messages.append(last := {"role": "assistant", "content": None})
        last.setdefault("tool_calls", []).append(_call(item))
    elif kind == "function_call_output":
        output = text_of(item.get("output"))
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind == "reasoning":
        return  # belongs to the reply that it came with
    else:
        messages.append({"role": "assistant", "content": [item]})


def _content(content: Json) -> Json:
    """Return a content as one text where it is nothing but text."""
    if isinstance(content, list) and all(isinstance(part.get("text"), str) for part in content):
        return text_of(content)
    return content


def _tool(tool: Json) -> Message:
    if tool.get("type") != "function" or "function" in tool:
        return dict(tool)
    inner = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": inner}


def _call(item: Json) -> Message:
    return tool_call(item.get("call_id"), item.get("name"), item.get("arguments") or "")


def _thought(item: Json) -> str:
    return "\n".join([text_of(item.get("summary")), text_of(item.get("content"))]).strip()


def _finish_reason(body: Json) -> str | None:
    details = body.get("incomplete_details") or {}
    reason = details.get("reason") or body.get("status")
    return str(reason) if reason else None


def _of(output: list[Json], kind: str) -> list[Json]:
    return [item for item in output if item.get("type") == kind]


def _grow_text(item: dict[str, Any], delta: str) -> None:
    content = item["content"] = list(item.get("content") or [{"type": "output_text", "text": ""}])
    content[0] = {"type": "output_text", "text": content[0].get("text", "") + delta}
