"""`record` sees requests and aiohttp as it sees httpx: any call, read in any way."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest
import requests

from orbiter.train import DataError, TrajectoryDataset, TrajectoryItem
from orbiter.train.capture import record
from orbiter.train.capture.transport import answered_by
from tests.capture.server import ModelServer

aiohttp = pytest.importorskip("aiohttp")

KEY = "sk-test-0123456789"
Json = Any
BODY: dict[str, Json] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**BODY, "stream": True}
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def chat(server: ModelServer) -> str:
    return f"{server.url}/chat/completions"


def captured(ask: Callable[[], object]) -> TrajectoryItem:
    dataset = TrajectoryDataset()
    with record(dataset):
        ask()
    (item,) = dataset.waiting
    return item


# requests

REQUESTS_WHOLE: dict[str, Callable[[str], Json]] = {
    "json": lambda url: requests.post(url, json=BODY, headers=HEADERS, timeout=9).json(),
    "text": lambda url: requests.post(url, data=json.dumps(BODY), timeout=9).text,
    "bytes": lambda url: requests.post(url, data=json.dumps(BODY).encode(), timeout=9).content,
    "file": lambda url: (
        requests.post(url, data=io.BytesIO(json.dumps(BODY).encode()), timeout=9).content
    ),
    "pieces": lambda url: (
        requests.post(
            url,
            data=iter([json.dumps(BODY).encode()[:9], json.dumps(BODY).encode()[9:]]),
            timeout=9,
        ).content
    ),
    "session": lambda url: requests.Session().post(url, json=BODY, timeout=9).content,
    "left unread": lambda url: requests.post(url, json=BODY, stream=True, timeout=9).content,
}


@pytest.mark.parametrize("way", REQUESTS_WHOLE)
def test_a_whole_reply_through_requests_is_captured(way: str, server: ModelServer) -> None:
    item = captured(lambda: REQUESTS_WHOLE[way](chat(server)))
    assert (item.action, item.messages) == ("The answer is 5.", BODY["messages"])
    assert item.metadata["finish_reason"] == "stop"
    assert "error" not in item.metadata
    assert KEY not in str(item)


REQUESTS_STREAMED: dict[str, Callable[[requests.Response], object]] = {
    "lines": lambda response: list(response.iter_lines()),
    "pieces": lambda response: list(response.iter_content(7)),
    "as they come": lambda response: list(response.iter_content(None)),
    "iterated": list,
    "content": lambda response: response.content,
    "raw": lambda response: response.raw.read(),
    "raw pieces": lambda response: list(iter(lambda: response.raw.read(5), b"")),
    "raw stream": lambda response: list(response.raw.stream(8, decode_content=True)),
}


@pytest.mark.parametrize("way", REQUESTS_STREAMED)
def test_a_stream_through_requests_is_captured(way: str, server: ModelServer) -> None:
    def ask() -> None:
        with requests.post(chat(server), json=STREAM, stream=True, timeout=9) as response:
            REQUESTS_STREAMED[way](response)

    item = captured(ask)
    assert (item.action, item.metadata["stream"]) == ("The answer is 5.", True)
    assert "error" not in item.metadata


def test_a_stream_through_requests_is_stored_before_its_end_is_seen(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with record(dataset):
        response = requests.post(chat(server), json=STREAM, stream=True, timeout=9)
        for line in response.iter_lines():
            if b"[DONE]" in line:
                assert len(dataset.waiting) == 1


def test_failures_through_requests_are_noted(server: ModelServer) -> None:
    server.plan = lambda number: ("status_500", "break_off", "break_before", "answer")[number]
    dataset = TrajectoryDataset()
    with record(dataset):
        assert requests.post(chat(server), json=BODY, timeout=9).status_code == 500
        with pytest.raises(requests.RequestException):
            requests.post(chat(server), json=STREAM, stream=True, timeout=9).content  # noqa: B018
        with pytest.raises(requests.RequestException):
            requests.post(chat(server), json=BODY, timeout=9)
        requests.post(chat(server), json=BODY, timeout=9)
    broken, whole = dataset.waiting
    assert broken.metadata["error"]
    assert [attempt["status"] for attempt in broken.metadata["failed_attempts"]] == [500]  # type: ignore[attr-defined]
    assert [attempt["status"] for attempt in whole.metadata["failed_attempts"]] == [0]  # type: ignore[attr-defined]


def test_a_stream_that_is_left_early_says_so(server: ModelServer) -> None:
    server.chunk_pause = 0.02

    def ask() -> None:
        with requests.post(chat(server), json=STREAM, stream=True, timeout=9) as response:
            next(line for line in response.iter_lines(1) if b"content" in line)

    item = captured(ask)
    assert item.metadata["error"] == "closed before the end"
    assert item.action in "The answer is 5."


def test_requests_to_anything_else_are_only_noted(server: ModelServer) -> None:
    with pytest.raises(DataError, match=r"GET 127\.0\.0\.1/v1/models"), record(TrajectoryDataset()):
        requests.get(f"{server.url}/models", timeout=9)
    requests.post(chat(server), json=BODY, timeout=9)  # outside of every block


# aiohttp


async def whole_json(session: Json, url: str) -> Json:
    async with session.post(url, json=BODY, headers=HEADERS) as response:
        return await response.json()


async def whole_text(session: Json, url: str) -> Json:
    async with session.post(url, data=json.dumps(BODY)) as response:
        return await response.text()


async def whole_bytes(session: Json, url: str) -> Json:
    response = await session.request("post", url, data=json.dumps(BODY).encode())
    return await response.read()


async def whole_file(session: Json, url: str) -> Json:
    async with session.post(url, data=io.BytesIO(json.dumps(BODY).encode())) as response:
        return await response.read()


async def whole_pieces(session: Json, url: str) -> Json:
    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(BODY).encode()

    async with session.post(url, data=pieces()) as response:
        return await response.read()


Ask = Callable[[Json, str], Awaitable[object]]


async def asked(server: ModelServer, ask: Ask) -> TrajectoryItem:
    dataset = TrajectoryDataset()
    async with aiohttp.ClientSession() as session:
        with record(dataset):
            await ask(session, chat(server))
    (item,) = dataset.waiting
    return item


@pytest.mark.parametrize("ask", [whole_json, whole_text, whole_bytes, whole_file, whole_pieces])
async def test_a_whole_reply_through_aiohttp_is_captured(ask: Ask, server: ModelServer) -> None:
    item = await asked(server, ask)
    assert (item.action, item.messages) == ("The answer is 5.", BODY["messages"])
    assert "error" not in item.metadata
    assert KEY not in str(item)


AIOHTTP_STREAMED: dict[str, Callable[[Json], Json]] = {
    "lines": lambda content: content,
    "any": lambda content: content.iter_any(),
    "pieces": lambda content: content.iter_chunked(7),
    "chunks": lambda content: content.iter_chunks(),
}


@pytest.mark.parametrize("way", AIOHTTP_STREAMED)
async def test_a_stream_through_aiohttp_is_captured(way: str, server: ModelServer) -> None:
    async def ask(session: Json, url: str) -> None:
        async with session.post(url, json=STREAM) as response:
            async for _ in AIOHTTP_STREAMED[way](response.content):
                pass

    item = await asked(server, ask)
    assert (item.action, item.metadata["stream"]) == ("The answer is 5.", True)
    assert "error" not in item.metadata


@pytest.mark.parametrize(
    "read",
    [
        lambda content: content.read(),
        lambda content: content.readline(),
        lambda content: content.readexactly(9),
        lambda content: content.readuntil(b"\n\n"),
        lambda content: content.readchunk(),
        lambda content: content.readany(),
    ],
)
async def test_a_stream_through_aiohttp_is_captured_by_every_way_to_read(
    read: Callable[[Json], Awaitable[object]], server: ModelServer
) -> None:
    async def ask(session: Json, url: str) -> None:
        async with session.post(url, json=STREAM) as response:
            await read(response.content)
            while await response.content.readany():
                pass

    assert (await asked(server, ask)).action == "The answer is 5."


async def test_failures_through_aiohttp_are_noted(server: ModelServer) -> None:
    server.plan = lambda number: (
        "status_500",
        "status_500",
        "break_off",
        "break_before",
        "answer",
    )[number]
    dataset = TrajectoryDataset()
    async with aiohttp.ClientSession() as session:
        with record(dataset):
            async with session.post(chat(server), json=BODY) as response:
                assert response.status == 500
            with pytest.raises(aiohttp.ClientResponseError):
                await session.post(chat(server), json=BODY, raise_for_status=True)
            with pytest.raises(aiohttp.ClientError):
                async with session.post(chat(server), json=STREAM) as response:
                    await response.read()
            with pytest.raises(aiohttp.ClientError):
                await session.post(chat(server), json=BODY)
            await whole_json(session, chat(server))
    broken, whole = dataset.waiting
    assert broken.metadata["error"]
    assert [attempt["status"] for attempt in broken.metadata["failed_attempts"]] == [500, 500]  # type: ignore[attr-defined]
    assert [attempt["status"] for attempt in whole.metadata["failed_attempts"]] == [0]  # type: ignore[attr-defined]


async def test_an_aiohttp_stream_that_is_left_early_says_so(server: ModelServer) -> None:
    server.chunk_pause = 0.02

    async def ask(session: Json, url: str) -> None:
        async with session.post(url, json=STREAM) as response:
            while b"content" not in (await response.content.readline() or b"content"):
                pass

    item = await asked(server, ask)
    assert item.metadata["error"] == "closed before the end"
    assert item.action in "The answer is 5."


async def test_many_aiohttp_calls_at_once_are_neither_lost_nor_mixed(server: ModelServer) -> None:
    server.reply = lambda body: "echo " + str(body["messages"][0]["content"])

    async def one(session: Json, number: int) -> None:
        body = {**BODY, "messages": [{"role": "user", "content": str(number)}]}
        async with session.post(chat(server), json={**body, "stream": number % 2 == 1}) as response:
            await response.read()

    dataset = TrajectoryDataset()
    async with aiohttp.ClientSession(base_url=f"{server.url}/") as session:
        with record(dataset):
            await asyncio.gather(*(one(session, number) for number in range(40)))
    assert {item.state: item.action for item in dataset.waiting} == {
        f"[user]\n{number}": f"echo {number}" for number in range(40)
    }


async def test_an_address_relative_to_the_sessions_is_recognised(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    async with aiohttp.ClientSession(base_url=f"{server.url}/") as session:
        with record(dataset):
            await whole_json(session, "chat/completions")
    assert len(dataset.waiting) == 1


# Answers in this process


class Answer(NamedTuple):
    """One answer, for a client of either kind."""

    status: int
    headers: list[tuple[str, str]]
    chunks: Json


class Echo:
    """Answers every chat with its last message; its address does not exist."""

    url = "https://api.openai.com/v1/chat/completions"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def takes(self, method: str, path: str) -> bool:
        return method == "POST" and path.endswith("/chat/completions")

    async def handle(self, path: str, headers: Json, body: bytes) -> Answer:
        status, kind, pieces = self.answer(path, headers, body)

        async def chunks() -> AsyncIterator[bytes]:
            for piece in pieces:
                await asyncio.sleep(0)
                yield piece

        return Answer(status, [("content-type", kind)], chunks())

    def handle_blocking(self, path: str, headers: Json, body: bytes) -> Answer:
        status, kind, pieces = self.answer(path, headers, body)
        return Answer(status, [("content-type", kind)], iter(pieces))

    def answer(self, path: str, headers: Json, body: bytes) -> tuple[int, str, list[bytes]]:
        asked = json.loads(body)
        self.seen.append((path, headers.get("authorization", "")))
        text = str(asked["messages"][-1]["content"])
        if text == "fail":
            return 400, "application/json", [b'{"error": {"message": "no"}}']
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            return 200, "application/json", [json.dumps({"choices": [choice]}).encode()]
        events = [{"choices": [{"index": 0, "delta": {"content": letter}}]} for letter in text]
        lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
        return 200, "text/event-stream", [*lines, b"data: [DONE]\n\n"]


def test_requests_reach_an_answerer_whole_streamed_and_refused() -> None:
    echo, dataset = Echo(), TrajectoryDataset()
    refused = {**BODY, "messages": [{"role": "user", "content": "fail"}]}
    with answered_by(echo), record(dataset):
        whole = requests.post(echo.url, json=BODY, headers=HEADERS, timeout=1e-9)
        with requests.post(echo.url, json=STREAM, stream=True, timeout=9) as response:
            pieces = list(response.iter_content(None))
            lines = b"".join(pieces).split(b"\n\n")
        bad = requests.post(echo.url, json=refused, timeout=9)
    assert whole.json()["choices"][0]["message"]["content"] == "Hello"
    assert (len(pieces), len(lines)) == (6, 7)
    assert (bad.status_code, bad.json()["error"]["message"]) == (400, "no")
    assert echo.seen[0] == ("/v1/chat/completions", f"Bearer {KEY}")
    assert [item.action for item in dataset.waiting] == ["Hello", "Hello"]


async def test_aiohttp_reaches_an_answerer_whole_streamed_and_refused() -> None:
    echo, dataset = Echo(), TrajectoryDataset()
    refused = {**BODY, "messages": [{"role": "user", "content": "fail"}]}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1e-9)) as session:
        with answered_by(echo), record(dataset):
            async with session.post(echo.url, json=BODY, headers=HEADERS) as response:
                whole = await response.json()
            async with session.post(echo.url, json=STREAM) as response:
                pieces = [piece async for piece in response.content.iter_any()]
            async with session.post(echo.url, json=refused) as response:
                status, bad = response.status, await response.json()
            await asyncio.gather(*(whole_json(session, echo.url) for _ in range(20)))
    assert whole["choices"][0]["message"]["content"] == "Hello"
    assert b"".join(pieces).count(b"\n\n") == 6
    assert (status, bad["error"]["message"]) == (400, "no")
    assert echo.seen[0] == ("/v1/chat/completions", f"Bearer {KEY}")
    assert [item.action for item in dataset.waiting] == ["Hello"] * 22


async def test_an_answer_that_is_left_early_is_stopped() -> None:
    stopped = asyncio.Event()

    class Endless(Echo):
        async def handle(self, path: str, headers: Json, body: bytes) -> Answer:
            async def chunks() -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield b"data: {}\n\n"
                        await asyncio.sleep(0)
                finally:
                    stopped.set()

            return Answer(200, [("content-type", "text/event-stream")], chunks())

    async with aiohttp.ClientSession() as session:
        with answered_by(Endless()):
            async with session.post(Echo.url, json=STREAM) as response:
                await response.content.readany()
            await asyncio.wait_for(stopped.wait(), 30)


async def test_other_models_and_addresses_go_outside(server: ModelServer) -> None:
    echo = Echo()
    async with aiohttp.ClientSession() as session:
        with answered_by(echo, models=["mine"]):
            outside, inside, models = await asyncio.to_thread(
                lambda: (
                    requests.post(chat(server), json=BODY, timeout=9).json(),
                    requests.post(echo.url, json={**BODY, "model": "mine"}, timeout=9).json(),
                    requests.get(f"{server.url}/models", timeout=9).json(),
                )
            )
            there = await whole_json(session, chat(server))
            async with session.post(echo.url, json={**BODY, "model": "mine"}) as response:
                here = await response.json()
    assert outside["choices"][0]["message"]["content"] == "The answer is 5."
    assert there["choices"][0]["message"]["content"] == "The answer is 5."
    assert inside["choices"][0]["message"]["content"] == "Hello"
    assert here["choices"][0]["message"]["content"] == "Hello"
    assert models == {"data": []}
    assert len(echo.seen) == 2


@pytest.mark.parametrize("library", ["requests", "aiohttp"])
def test_a_library_that_is_imported_later_is_wrapped_then(
    library: str, server: ModelServer
) -> None:
    calls = {
        "requests": f"requests.post({chat(server)!r}, json={BODY})",
        "aiohttp": f"asyncio.run(ask({chat(server)!r}))",
    }
    program = f"""
import asyncio
from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record
from orbiter.train.capture.transport import answered_by
async def ask(url):
    async with aiohttp.ClientSession() as session, session.post(url, json={BODY}) as response:
        await response.read()
dataset = TrajectoryDataset()
with record(dataset):
    import {library}
    {calls[library]}
print(len(dataset.waiting))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr
