"""`record` sees aiohttp as it sees httpx: any call, read in any way."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from orbiter.train import TrajectoryDataset, TrajectoryItem
from orbiter.train.capture import record
from tests.capture.server import ModelServer
from tests.children import run_child

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


def test_a_library_that_is_imported_later_is_wrapped_then(server: ModelServer) -> None:
    program = f"""
import asyncio
async def ask(url):
    async with aiohttp.ClientSession() as session, session.post(url, json={BODY}) as response:
        await response.read()
from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record
dataset = TrajectoryDataset()
with record(dataset):
    import aiohttp
    asyncio.run(ask({chat(server)!r}))
print(len(dataset.waiting))
"""
    done = run_child([sys.executable, "-c", program])
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr
