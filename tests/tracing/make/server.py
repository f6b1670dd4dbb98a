"""A loopback server that answers like the chat, Responses and Messages APIs, for the fixtures.

What it says depends on the last words of the prompt: "weather" asks for two tool calls at once,
"fail" gets an error, anything else a text. It streams if the request asks for it. Its LangSmith
side keeps the runs that the SDK sends.
"""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

Json = Any
CALLS = [("call_graz", "Graz"), ("call_linz", "Linz")]
WORDS, ANSWER, THOUGHT = "I look it up.", "Sun in Graz, rain in Linz.", "Two cities."


INFO = {
    "version": "0.16.0",
    "batch_ingest_config": {
        "use_multipart_endpoint": False,
        "size_limit": 100,
        "size_limit_bytes": 20_971_520,
        "scale_up_nthreads_limit": 1,
        "scale_up_qsize_trigger": 1_000,
        "scale_down_nempty_trigger": 4,
    },
}
"""What LangSmith's service says about itself."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    runs: dict[str, dict[str, Json]] = {}

    def log_message(self, *_: object) -> None:
        """Write no log."""

    def do_GET(self) -> None:
        self.send(200, INFO)

    def do_PATCH(self) -> None:
        self.keep(self.body())

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        if os.environ.get("VERBOSE"):
            print(self.command, self.path, data[:300], file=sys.stderr)
        given = decoded(data)
        if self.path.endswith("/runs"):
            self.keep(given)
            return
        if self.path.endswith("/runs/batch"):
            for run in [*given.get("post", ()), *given.get("patch", ())]:
                self.remember(run)
            self.send(202, {})
            return
        kind = next((kind for kind in KINDS if kind in self.path), None)
        if kind is None:
            self.send(200, {})
        elif "fail" in last_words(given):
            self.send(
                400,
                {
                    "type": "error",
                    "error": {"type": "invalid_request_error", "message": "no such city"},
                },
            )
        elif given.get("stream"):
            self.stream(KINDS[kind][1](given), named=kind != "chat/completions")
        else:
            self.send(200, KINDS[kind][0](given))

    def body(self) -> Json:
        return decoded(self.rfile.read(int(self.headers.get("content-length") or 0)))

    def keep(self, run: dict[str, Json]) -> None:
        self.remember({"id": self.path.rpartition("/")[2], **run})
        self.send(202, {})

    def remember(self, run: dict[str, Json]) -> None:
        held = self.runs.setdefault(run["id"], {})
        held.update({name: value for name, value in run.items() if value is not None})

    def send(self, status: int, value: Json) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events: Iterator[Json], *, named: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for event in events:
            name = f"event: {event['type']}\n" if named else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        if not named:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def decoded(data: bytes) -> Json:
    try:
        return json.loads(data)
    except ValueError:
        return {}


def start() -> str:
    """Start the server in a thread; return its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def last_words(given: Json) -> str:
    """Return the text of the last message of a prompt, or "" if it is the result of a tool."""
    turns = given.get("messages") or given.get("input")
    if isinstance(turns, str):
        return turns
    last = turns[-1] if turns else {}
    if last.get("role") == "tool" or last.get("type") == "function_call_output":
        return ""
    content = last.get("content")
    if isinstance(content, str):
        return content
    blocks = [block for block in content or () if isinstance(block, dict)]
    return " ".join(str(block.get("text") or "") for block in blocks)


def turn(given: Json) -> int:
    """Return 1 for the first call of a conversation, 2 for the second."""
    turns = given.get("messages") or given.get("input")
    return 1 if isinstance(turns, str) or len(turns) < 3 else 2


def wants_tools(given: Json) -> bool:
    return bool(given.get("tools")) and "weather" in last_words(given)


def chat(given: Json) -> Json:
    message: dict[str, Json] = {"role": "assistant", "content": ANSWER}
    if wants_tools(given):
        calls = [
            {
                "id": call,
                "type": "function",
                "function": {"name": "weather", "arguments": json.dumps({"city": city})},
            }
            for call, city in CALLS
        ]
        message = {"role": "assistant", "content": WORDS, "tool_calls": calls}
    reason = "tool_calls" if "tool_calls" in message else "stop"
    return {
        "id": f"chatcmpl-{turn(given)}", "object": "chat.completion", "created": 1772359200, "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29,
                  "prompt_tokens_details": {"cached_tokens": 5}},
    }  # fmt: skip


def chat_events(given: Json) -> Iterator[Json]:
    whole = chat(given)
    message = whole["choices"][0]["message"]

    def chunk(delta: Json, reason: str | None = None, **more: Json) -> Json:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return {"id": whole["id"], "object": "chat.completion.chunk", "created": 1772359200,
                "model": "gpt-4o-mini", "choices": choices, **more}  # fmt: skip

    yield chunk({"role": "assistant", "content": ""})
    for word in message["content"].split(" "):
        yield chunk({"content": word if word == message["content"].split(" ")[0] else f" {word}"})
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield chunk(
            {
                "tool_calls": [
                    {"index": index, "id": call["id"], "type": "function", "function": function}
                ]
            }
        )
        for half in (call["function"]["arguments"][:8], call["function"]["arguments"][8:]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": half}}]})
    yield chunk({}, whole["choices"][0]["finish_reason"])
    if (given.get("stream_options") or {}).get("include_usage"):
        yield {**chunk({}), "choices": [], "usage": whole["usage"]}


def responses(given: Json) -> Json:
    text = WORDS if wants_tools(given) else ANSWER
    part = {"type": "output_text", "text": text, "annotations": []}
    output: list[Json] = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": THOUGHT}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        },
    ]
    if wants_tools(given):
        output += [
            {"type": "function_call", "id": f"fc_{call}", "call_id": call, "name": "weather",
             "arguments": json.dumps({"city": city}), "status": "completed"}
            for call, city in CALLS
        ]  # fmt: skip
    return {
        "id": f"resp_{turn(given)}", "object": "response", "created_at": 1772359200, "model": "gpt-4o-mini",
        "status": "completed", "output": output, "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": given.get("tools") or [], "instructions": given.get("instructions"),
        "temperature": 1.0, "top_p": 1.0, "metadata": {}, "error": None, "incomplete_details": None,
        "usage": {"input_tokens": 20, "output_tokens": 9, "total_tokens": 29,
                  "input_tokens_details": {"cached_tokens": 5},
                  "output_tokens_details": {"reasoning_tokens": 3}},
    }  # fmt: skip


def responses_events(given: Json) -> Iterator[Json]:
    whole = responses(given)
    number = 0

    def event(kind: str, **more: Json) -> Json:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number, **more}

    yield event(
        "response.created", response={**whole, "status": "in_progress", "output": [], "usage": None}
    )
    for index, item in enumerate(whole["output"]):
        begun = {**item, "status": "in_progress"} if "status" in item else dict(item)
        if item["type"] == "message":
            begun["content"] = []
        yield event("response.output_item.added", output_index=index, item=begun)
        if item["type"] == "message":
            place = {"output_index": index, "content_index": 0, "item_id": item["id"]}
            (part,) = item["content"]
            yield event("response.content_part.added", **place, part={**part, "text": ""})
            yield event("response.output_text.delta", **place, delta=part["text"], logprobs=[])
            yield event("response.output_text.done", **place, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **place, part=part)
        if item["type"] == "function_call":
            place = {"output_index": index, "item_id": item["id"]}
            yield event("response.function_call_arguments.delta", **place, delta=item["arguments"])
            yield event(
                "response.function_call_arguments.done",
                **place,
                arguments=item["arguments"],
                name=item["name"],
            )
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.completed", response=whole)


def messages(given: Json) -> Json:
    content: list[Json] = []
    if given.get("thinking"):
        content.append({"type": "thinking", "thinking": THOUGHT, "signature": "c2lnbmVk"})
    content.append({"type": "text", "text": WORDS if wants_tools(given) else ANSWER})
    if wants_tools(given):
        content += [
            {"type": "tool_use", "id": call, "name": "weather", "input": {"city": city}}
            for call, city in CALLS
        ]
    return {
        "id": f"msg_{turn(given)}", "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
        "content": content, "stop_reason": "tool_use" if wants_tools(given) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 15, "output_tokens": 9, "cache_read_input_tokens": 5,
                  "cache_creation_input_tokens": 0},
    }  # fmt: skip


def messages_events(given: Json) -> Iterator[Json]:
    whole = messages(given)
    begun = {
        **whole,
        "content": [],
        "stop_reason": None,
        "usage": {**whole["usage"], "output_tokens": 1},
    }
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(whole["content"]):
        empty = {
            "text": {"text": ""},
            "thinking": {"thinking": "", "signature": ""},
            "tool_use": {"input": {}},
        }
        yield {
            "type": "content_block_start",
            "index": index,
            "content_block": {**block, **empty[block["type"]]},
        }
        deltas: list[Json]
        if block["type"] == "text":
            deltas = [{"type": "text_delta", "text": block["text"]}]
        elif block["type"] == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": block["thinking"]},
                      {"type": "signature_delta", "signature": block["signature"]}]  # fmt: skip
        else:
            text = json.dumps(block["input"])
            deltas = [
                {"type": "input_json_delta", "partial_json": half} for half in (text[:6], text[6:])
            ]
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
           "usage": whole["usage"]}  # fmt: skip
    yield {"type": "message_stop"}


KINDS = {
    "chat/completions": (chat, chat_events),
    "responses": (responses, responses_events),
    "messages": (messages, messages_events),
}
