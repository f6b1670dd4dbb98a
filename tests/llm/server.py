"""A real HTTP server on 127.0.0.1 that speaks the chat API, and misbehaves when it is told to.

It runs in a thread of its own, with its own event loop, and writes down what came in.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

Deed = Literal[
    "answer",
    "pieces",
    "stream",
    "broken_stream",
    "bad_stream",
    "limit",
    "limit_wait",
    "quota",
    "stall",
    "stall_within",
    "break",
    "break_within",
    "broken_json",
    "wrong_json",
    "no_text",
    "error",
    "refuse",
]


class Seen(NamedTuple):
    """One request that came in."""

    at: float
    text: str
    """The last message's content."""
    body: dict[str, object]
    key: str
    deed: Deed


@dataclass
class ChatServer:
    """Answers every request with what `plan` says: by the number of the request and its text."""

    plan: Callable[[int, str], Deed] = lambda _number, _text: "answer"
    latency: float = 0.0
    rate: float | None = None
    """Requests a second let through; more are answered with 429."""
    burst: float = 1.0
    retry_after: str | None = None
    """What a 429 says."""
    reply: Callable[[str], str] = lambda text: f"echo {text}"
    seen: list[Seen] = field(default_factory=list[Seen])
    paid: list[str] = field(default_factory=list[str])
    """Texts of the requests that were answered to the last byte."""
    in_flight: int = 0
    most_in_flight: int = 0
    _level: float = 0.0
    _filled_at: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        self._level, self._filled_at = self.burst, time.monotonic()
        self._ready = threading.Event()
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
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
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
        """Serve one request; say whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        text = body["messages"][-1]["content"]
        deed = self._admitted(self.plan(len(self.seen), text))
        self.seen.append(Seen(time.monotonic(), text, body, headers.get("authorization", ""), deed))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency and deed not in {"limit", "limit_wait"}:
                await asyncio.sleep(self.latency)
            open_still = await self._do(deed, text, writer)
            await writer.drain()
        finally:
            self.in_flight -= 1
        return open_still

    def _admitted(self, deed: Deed) -> Deed:
        if self.rate is None:
            return deed
        now = time.monotonic()
        self._level = min(self.burst, self._level + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if self._level < 1:
            return "limit" if self.retry_after is None else "limit_wait"
        self._level -= 1
        return deed

    async def _do(self, deed: Deed, text: str, writer: asyncio.StreamWriter) -> bool:
        good = json.dumps(completion(self.reply(text))).encode()
        error = json.dumps({"error": {"message": "it is on fire", "code": "fire"}}).encode()
        quota = json.dumps(
            {"error": {"message": "no money", "code": "insufficient_quota"}}
        ).encode()
        wait = f"retry-after: {self.retry_after or 0.05}\r\n"
        whole: dict[Deed, tuple[int, bytes, str]] = {
            "answer": (200, good, ""),
            "limit": (429, error, ""),
            "limit_wait": (429, error, wait),
            "quota": (429, quota, ""),
            "broken_json": (200, good[: len(good) // 2], ""),
            "wrong_json": (200, b'{"result": [1, 2]}', ""),
            "no_text": (200, b'{"choices": [{"message": {"content": null}}]}', ""),
            "error": (500, error, ""),
            "refuse": (400, error, ""),
        }
        if deed in whole:
            status, content, extra = whole[deed]
            writer.write(head_of(status, len(content), extra) + content)
            if deed == "answer":
                self.paid.append(text)
            return True
        return await self._misbehave(deed, text, good, writer)

    async def _misbehave(
        self, deed: Deed, text: str, good: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        if deed == "stall":
            await asyncio.sleep(3600)
        if deed == "break":
            return False
        if deed.endswith("stream"):
            return await self._stream(deed, text, writer)
        writer.write(head_of(200, len(good), "") + good[:20])
        await writer.drain()
        if deed == "stall_within":
            await asyncio.sleep(3600)
        if deed == "break_within":
            return False
        for first in range(20, len(good), 40):
            await asyncio.sleep(0.001)
            writer.write(good[first : first + 40])
        self.paid.append(text)
        return True

    async def _stream(self, deed: Deed, text: str, writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        words = self.reply(text).split(" ")
        pieces: Sequence[str] = [word + " " for word in words[:-1]] + words[-1:]
        for piece in pieces:
            writer.write(b"data: " + json.dumps(chunk(piece, None)).encode() + b"\n\n")
            await writer.drain()
        if deed == "bad_stream":
            writer.write(b"data: {nonsense\n\n")
        if deed != "stream":
            return False
        for last in (chunk("", "stop"), chunk(None, None)):
            writer.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        writer.write(b"data: [DONE]\n\n")
        self.paid.append(text)
        return False


def head_of(status: int, length: int, extra: str) -> bytes:
    return (
        f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n{extra}\r\n"
    ).encode()


def completion(text: str) -> dict[str, object]:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def chunk(text: str | None, finish: str | None) -> dict[str, object]:
    """Return a piece of a stream; without a text it is the last one, which counts the tokens."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    if text is None:
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return {**base, "choices": [], "usage": usage}
    return {**base, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
