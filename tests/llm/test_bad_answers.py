"""Every status, with every header and body, whole or streamed: each call ends, and ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from itertools import product
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from orbiter.train.llm import Answer, BudgetError, ChatError, ClientConfig, Price, RemoteChatModel
from tests.llm.raw_server import RawServer, Reply, completion

GIVE_UP = 1.0
STATUSES = [
    200,
    204,
    301,
    400,
    401,
    403,
    404,
    408,
    409,
    413,
    418,
    422,
    425,
    429,
    500,
    502,
    503,
    529,
]
HEADERS: list[dict[str, str]] = [
    {},
    {"Retry-After": "86400"},
    {"Retry-After": "Wed, 21 Oct 2099 07:28:00"},
    {"Retry-After": "Wed, 21 Oct 2015 07:28:00 -0000"},
    {"Retry-After": "-1"},
    {"Retry-After": "NaN"},
    {"Retry-After": "1e400"},
    {"retry-after-ms": "99999999"},
    {"Retry-After": "a day"},
    {"Content-Type": "text/html; charset=klingon"},
    {"Content-Encoding": "gzip"},
    {"x-should-retry": "true"},
]
MESSAGES: list[Any] = [
    {"content": "Four."},
    {"content": [{"type": "text", "text": "Four."}]},
    {"content": [{"type": "image_url"}, None, 3]},
    {"content": None},
    {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
    {"content": {}},
    {"role": 3},
    {},
    None,
    [],
    "Four.",
]
BODIES: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b"\xff\xfe",
    b"<html>busy</html>",
    b"[" * 5000,
    b'{"error": null}',
    b'{"error": "x"}',
    b'{"error": {"message": {"a": 1}, "code": []}}',
    b'{"choices": null}',
    b'{"choices": [null]}',
    b'{"choices": [{"text": "Four."}]}',
    b'{"choices": [{"message": {"content": "Fo',
    b'{"choices": [{"message": {"content": "Four.", "content": "Five."}}], "usage": -1}',
    *(b"%s" % completion(message).body for message in MESSAGES),
]
CHOICES: list[object] = [
    None,
    [],
    [None],
    [{}],
    [{"delta": None}],
    [{"delta": {"content": "Four."}}],
    [{"delta": {"content": "Four."}, "finish_reason": "stop"}],
    [{"delta": {"content": 3}, "finish_reason": 4}],
    [{"delta": {"tool_calls": [{}]}}],
    [{"delta": [1]}],
    {"0": 1},
]
ENDS: list[list[bytes]] = [[], [b"data: [DONE]\n\n"]]
EVENTS: list[list[bytes]] = [
    [],
    [b"data: [DONE]\n\n"],
    [b"data: {}\n\n", b"data: [DONE]\n\n"],
    [b"data: null\n\n"],
    [b"data: {\n\n"],
    [b": comment\n\n", b"event: error\ndata: {}\n\n"],
    [b'data: {"error": {"message": "overloaded"}}\n\n'],
    [b"garbage without a colon\n\n"],
    [b"data: \xff\n\n"],
    *(
        [b"data: %s\n\n" % json.dumps({"choices": choices}).encode(), *end]
        for choices, end in product(CHOICES, ENDS)
    ),
]


async def ends(
    replies: list[Reply], *, stream: bool, give_up_seconds: float = GIVE_UP
) -> list[object]:
    """Ask once for every reply, all at once, each with its own model; return how they ended."""

    def reply(_number: int, body: dict[str, Any]) -> Reply:
        return replies[int(body["messages"][0]["content"])]

    async def ask_one(number: int, url: str) -> object:
        config = ClientConfig(
            model="m",
            base_url=url,
            attempts=2,
            give_up_seconds=give_up_seconds,
            stream=stream,
            price=Price(input=1.0, output=1.0),
            parameters={"max_tokens": 5},
            budget=100.0,
        )
        async with RemoteChatModel(config) as model, asyncio.timeout(60):
            try:
                return await model([{"role": "user", "content": str(number)}])
            except Exception as error:  # `check` says which are allowed
                return error

    with RawServer(reply) as server:
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> object:
            async with gate:
                return await ask_one(number, server.url)

        return await asyncio.gather(*(one(number) for number in range(len(replies))))


def check(outcomes: list[object], replies: list[Reply]) -> None:
    foreign = [
        (type(outcome).__name__, str(outcome)[:80], str(reply)[:120])
        for outcome, reply in zip(outcomes, replies, strict=True)
        if not isinstance(outcome, Answer | ChatError | BudgetError)
    ]
    assert foreign == []
    for outcome, reply in zip(outcomes, replies, strict=True):
        if isinstance(outcome, Answer):
            assert isinstance(outcome.text, str), reply
            assert reply.status < 300, reply
        else:
            assert str(outcome), reply
            assert len(str(outcome)) < 800, reply


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_every_status_with_every_header_ends(stream: bool) -> None:
    bodies: list[bytes | list[bytes]] = [BODIES[0], BODIES[6], BODIES[10], BODIES[16]]
    if stream:
        bodies = [EVENTS[0], EVENTS[6], EVENTS[-3], b"{}"]
    # Each body with each status and with each header, though not with all pairs of these.
    replies = [
        Reply(bodies[number % len(bodies)], status, headers)
        for number, (status, headers) in enumerate(product(STATUSES, HEADERS[:-1]))
    ]
    check(await ends(replies, stream=stream), replies)


@pytest.mark.parametrize("stream", [False, True])
async def test_every_body_ends(stream: bool) -> None:
    bodies, events = (BODIES[:9], EVENTS) if stream else (BODIES, EVENTS[-9:])
    replies = [Reply(body) for body in bodies] + [Reply(each) for each in events]
    check(await ends(replies, stream=stream), replies)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_good_body_among_these_is_an_answer(stream: bool) -> None:
    good = (
        [Reply(event) for event in EVENTS if b"Four." in b"".join(event) and b"stop" in event[0]]
        if stream
        else [completion(MESSAGES[0]), completion(MESSAGES[1])]
    )
    # It ends with the first attempt, so a long limit costs nothing, and a slow machine may use it.
    outcomes = await ends(good, stream=stream, give_up_seconds=50.0)
    texts = [getattr(outcome, "text", outcome) for outcome in outcomes]
    assert len(good) == 2
    assert texts == ["Four.", "Four."]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["silent", "trickle", "closes"])
async def test_an_endpoint_that_says_nothing_is_given_up(stream: bool, how: str) -> None:
    seen, stop = threading.Event(), threading.Event()

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            seen.set()
            if how == "silent":
                stop.wait(30)
            elif how == "trickle":
                with contextlib.suppress(OSError):  # the client leaves
                    self.request.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
                    )
                    while not stop.wait(0.1):
                        self.request.sendall(b": ping\n\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        config = ClientConfig(
            model="m",
            base_url=f"http://127.0.0.1:{server.server_address[1]}/v1",
            give_up_seconds=GIVE_UP,
            stream=stream,
            attempts=3,
        )
        async with RemoteChatModel(config) as model:
            begin = time.monotonic()
            with pytest.raises(ChatError):
                await asyncio.wait_for(model([{"role": "user", "content": "hello"}]), 60)
            assert time.monotonic() - begin < 30, "far below the default of 300 s"
            seen.clear()
            call = asyncio.create_task(model([{"role": "user", "content": "again"}]))
            await asyncio.wait([call], timeout=0.01)
            while not (seen.is_set() or call.done()):
                await asyncio.wait([call], timeout=0.01)
            call.cancel()
            with pytest.raises((asyncio.CancelledError, ChatError)):
                await call
        stop.set()
        server.shutdown()
