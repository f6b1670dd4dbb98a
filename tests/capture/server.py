"""A real HTTP server on 127.0.0.1 that speaks three APIs, and misbehaves when it is told to.

It plays a model with tools: as long as a tool is on offer and none has answered, it calls it; then
it answers in words. It runs in a thread of its own and writes down what came in and what it said.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

Deed = Literal["answer", "status_500", "break_off", "error_event", "break_before", "gibberish"]
Json = Any


class Seen(NamedTuple):
    """One request that came in, and what was answered where it was answered whole."""

    path: str
    body: Json
    headers: dict[str, str]
    deed: Deed
    said: Json


@dataclass
class ModelServer:
    """Answers by `plan`, which gets the number of the request."""

    plan: Callable[[int], Deed] = lambda _number: "answer"
    calls_at_once: int = 1
    """Tools called in one turn."""
    reply: Callable[[Json], str] = lambda _body: "The answer is 5."
    failure: str = "try again"
    """The message of a status 500."""
    token_ids: bool = False
    latency: float = 0.0
    chunk_pause: float = 0.0
    seen: list[Seen] = field(default_factory=list[Seen])

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def __enter__(self) -> Self:
        self._ready = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=2048)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1]
        headers = {n.lower(): v for n, v in (line.split(": ", 1) for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or "{}")
        number, self._count = self._count, self._count + 1
        deed = self.plan(number)
        said = answer(self, path, body, number) if is_model(path) else {"data": []}
        self.seen.append(Seen(path, body, headers, deed, said))
        await asyncio.sleep(self.latency)
        if deed == "break_before":
            return False
        if deed == "status_500":
            failed = {"error": {"message": self.failure}}
            return await self._whole(writer, 500, json.dumps(failed).encode())
        if deed == "gibberish":
            return await self._whole(writer, 200, b"<html>hello</html>")
        if body.get("stream"):
            return await self._streamed(writer, path, said, deed)
        raw = json.dumps(said).encode()
        if deed == "break_off":
            writer.write(_head(200, "application/json", len(raw)) + raw[: len(raw) // 2])
            await writer.drain()
            return False
        return await self._whole(writer, 200, raw)

    async def _whole(self, writer: asyncio.StreamWriter, status: int, raw: bytes) -> bool:
        writer.write(_head(status, "application/json", len(raw)) + raw)
        await writer.drain()
        return True

    async def _streamed(
        self, writer: asyncio.StreamWriter, path: str, said: Json, deed: Deed
    ) -> bool:
        writer.write(_head(200, "text/event-stream", None))
        events = list(stream_of(path, said))
        if deed != "answer":
            events = events[: max(2, len(events) // 2)]
        if deed == "error_event":
            events.append(error_event(path))
        for event in events:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            if self.chunk_pause:
                await asyncio.sleep(self.chunk_pause)
        if deed == "break_off":
            await writer.drain()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def is_model(path: str) -> bool:
    return path.endswith(("/chat/completions", "/responses", "/messages"))


def answer(server: ModelServer, path: str, body: Json, number: int) -> Json:
    """Return the whole response: calls of a tool first, words when it has answered."""
    names = [tool.get("name") or tool["function"]["name"] for tool in body.get("tools") or ()]
    results = _results(body)
    called: list[tuple[str, str]] = []
    if names and not results:
        name = next(name for name in names if name != "final_answer")
        called = [(name, json.dumps({"a": 2, "b": 3 + k})) for k in range(server.calls_at_once)]
    elif "final_answer" in names:
        called = [("final_answer", json.dumps({"answer": "5"}))]
    text = "" if called else server.reply(body)
    calls = [(f"call_{number}_{k}", name, arguments) for k, (name, arguments) in enumerate(called)]
    if path.endswith("/chat/completions"):
        return _chat(body, number, text, calls, token_ids=server.token_ids)
    if path.endswith("/responses"):
        return _response(body, number, text, calls)
    return _message(body, number, text, calls)


def _results(body: Json) -> bool:
    talk = body.get("messages") or body.get("input")
    if not isinstance(talk, list):
        return False
    return any(
        turn.get("role") == "tool"
        or turn.get("type") == "function_call_output"
        or "tool_result" in str(turn.get("content"))
        or "Observation" in str(turn.get("content"))
        for turn in talk
        if turn.get("role") != "system"
    )


def _chat(
    body: Json, number: int, text: str, calls: list[tuple[str, str, str]], *, token_ids: bool
) -> Json:
    message: Json = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call, name, arguments in calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if calls else "stop",
        "logprobs": None,
    }
    whole: Json = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 10 + number, "completion_tokens": 7, "total_tokens": 17},
    }
    for index in range(1, body.get("n") or 1):
        other = {"role": "assistant", "content": f"Answer {index + 1}."}
        whole["choices"].append(choice | {"index": index, "message": other})
    if token_ids:
        prompt = list(json.dumps(body["messages"]).encode())
        sampled = list(json.dumps(message).encode())
        choice["token_ids"] = sampled
        choice["logprobs"] = {
            "content": [
                {"token": chr(c), "logprob": -0.5, "bytes": [c], "top_logprobs": []}
                for c in sampled
            ]
        }
        whole["prompt_token_ids"] = prompt
    return whole


def _response(body: Json, number: int, text: str, calls: list[tuple[str, str, str]]) -> Json:
    output: list[Json] = [
        {
            "type": "function_call",
            "id": f"fc_{call}",
            "call_id": call,
            "name": name,
            "arguments": arguments,
            "status": "completed",
        }
        for call, name, arguments in calls
    ]
    if text:
        part = {"type": "output_text", "text": text, "annotations": []}
        output.append(
            {
                "type": "message",
                "id": f"msg_{number}",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        )
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1.0,
        "status": "completed",
        "model": body["model"],
        "output": output,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": {
            "input_tokens": 10 + number,
            "output_tokens": 7,
            "total_tokens": 17 + number,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


def _message(body: Json, number: int, text: str, calls: list[tuple[str, str, str]]) -> Json:
    content: list[Json] = [{"type": "text", "text": text}] if text else []
    content += [
        {"type": "tool_use", "id": call, "name": name, "input": json.loads(arguments)}
        for call, name, arguments in calls
    ]
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10 + number, "output_tokens": 7},
    }


def _head(status: int, kind: str, length: int | None) -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{size}\r\n\r\n".encode()


def error_event(path: str) -> bytes:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    if path.endswith("/chat/completions"):
        return _data({"error": error})
    if path.endswith("/responses"):
        return _data({"type": "error", "message": "Overloaded", "code": "x", "param": None})
    return _data({"type": "error", "error": error})


def stream_of(path: str, said: Json) -> Iterator[bytes]:
    """Yield a whole response as its API streams it."""
    if path.endswith("/chat/completions"):
        yield from _chat_stream(said)
    elif path.endswith("/responses"):
        yield from _response_stream(said)
    else:
        yield from _message_stream(said)


def _data(event: Json) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


def _pieces(text: str) -> list[str]:
    return [text[at : at + 5] for at in range(0, len(text), 5)]


def _chat_stream(said: Json) -> Iterator[bytes]:
    head = {name: said[name] for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"
    choice, *others = said["choices"]

    def chunk(delta: Json, finish: str | None = None, **more: Json) -> bytes:
        made = {"index": 0, "delta": delta, "finish_reason": finish}
        return _data(head | {"choices": [made | more]})

    first = head | {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    if "prompt_token_ids" in said:
        first["prompt_token_ids"] = said["prompt_token_ids"]
    yield _data(first)
    for piece in _pieces(choice["message"]["content"] or ""):
        yield chunk({"content": piece})
    for other in others:
        yield chunk({"content": other["message"]["content"]}, "stop", index=other["index"])
    for index, call in enumerate(choice["message"].get("tool_calls") or ()):
        opening = {"index": index, "id": call["id"], "type": "function"}
        yield chunk({"tool_calls": [opening | {"function": call["function"] | {"arguments": ""}}]})
        for piece in _pieces(call["function"]["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    if "token_ids" in choice:
        half = len(choice["token_ids"]) // 2
        content = choice["logprobs"]["content"]
        for part in (slice(None, half), slice(half, None)):
            yield chunk(
                {}, token_ids=choice["token_ids"][part], logprobs={"content": content[part]}
            )
    yield chunk({}, choice["finish_reason"])
    yield _data(head | {"choices": [], "usage": said["usage"]})
    yield b"data: [DONE]\n\n"


def _response_stream(said: Json) -> Iterator[bytes]:
    number = 0

    def event(kind: str, **more: Json) -> bytes:
        nonlocal number
        number += 1
        return _data({"type": kind, "sequence_number": number} | more)

    begun = said | {"status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response=begun)
    for index, item in enumerate(said["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "message":
            empty = item | {"content": [], "status": "in_progress"}
            yield event("response.output_item.added", output_index=index, item=empty)
            part = item["content"][0]
            opened = part | {"text": ""}
            yield event("response.content_part.added", **at, content_index=0, part=opened)
            for piece in _pieces(part["text"]):
                yield event(
                    "response.output_text.delta", **at, content_index=0, delta=piece, logprobs=[]
                )
            yield event("response.content_part.done", **at, content_index=0, part=part)
        else:
            empty = item | {"arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=index, item=empty)
            for piece in _pieces(item["arguments"]):
                yield event("response.function_call_arguments.delta", **at, delta=piece)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.completed", response=said)


def _message_stream(said: Json) -> Iterator[bytes]:
    begun = said | {"content": [], "stop_reason": None}
    yield _data({"type": "message_start", "message": begun})
    for index, block in enumerate(said["content"]):
        at = {"index": index}
        if block["type"] == "text":
            opened = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": p} for p in _pieces(block["text"])]
        else:
            opened = block | {"input": {}}
            written = json.dumps(block["input"])
            deltas = [{"type": "input_json_delta", "partial_json": p} for p in _pieces(written)]
        yield _data({"type": "content_block_start", "content_block": opened} | at)
        for delta in deltas:
            yield _data({"type": "content_block_delta", "delta": delta} | at)
        yield _data({"type": "content_block_stop"} | at)
    end = {"stop_reason": said["stop_reason"], "stop_sequence": None}
    yield _data({"type": "message_delta", "delta": end, "usage": {"output_tokens": 7}})
    yield _data({"type": "message_stop"})
