"""Slow, idle and endless clients against a server from `make_server`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from orbiter.train import http_server
from orbiter.train.net import bind

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: object, receive: Receive, send: Send) -> None:
    """Answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message.get("more_body", False)
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    with bind("127.0.0.1", 0) as listener:
        server = http_server.make_server(app, extra="serve", closing_seconds=1)
        task = asyncio.create_task(server._serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.001)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def answer(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send the pieces and return all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_request_in_time_is_answered_also_in_pieces() -> None:
    request = HEAD + b"Connection: close\r\nContent-Length: 6\r\n\r\nabcdef"
    async with served() as port:
        assert (await answer(port, request)).endswith(b"\r\n\r\n6")
        assert (await answer(port, request[:20], request[20:-3], request[-3:])).endswith(b"6")
        long = HEAD + b"Connection: close\r\nContent-Length: 1000000\r\n\r\n"
        assert (await answer(port, long, b"x" * 1_000_000)).endswith(b"1000000")


@pytest.mark.parametrize("pieces", [(), (b"POST /",), (HEAD,), (b"P", b"O", b"S", b"T")])
async def test_a_client_that_never_ends_its_headers_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
    async with served() as port:
        assert await answer(port, *pieces, pause=0.01) == b""


async def test_a_body_that_stops_or_never_ends_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(http_server, "BODY_SECONDS", 0.5)
    head = HEAD + b"Content-Length: 100\r\n\r\n"
    async with served() as port:
        assert await answer(port, head, b"abc") == b""
        assert await answer(port, head, *[b"x"] * 30, pause=0.05) == b""


async def test_endless_headers_are_cut_off() -> None:
    async with served() as port:
        lines = [b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(200)]
        assert b" 200 " not in await answer(port, HEAD, *lines, pause=0.001)


async def test_a_kept_connection_may_send_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LONGEST_HEAD", 200)
    request = HEAD + b"Content-Length: 1\r\n\r\nx"
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20):
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(1) == b"1"
        writer.close()
