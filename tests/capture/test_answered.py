"""Agents on requests and aiohttp reach an answerer in this process, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest
import requests

from orbiter.train import TrajectoryDataset
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


async def whole_json(session: Json, url: str) -> Json:
    async with session.post(url, json=BODY, headers=HEADERS) as response:
        return await response.json()


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
                    requests.post(f"{server.url}/chat/completions", json=BODY, timeout=9).json(),
                    requests.post(echo.url, json={**BODY, "model": "mine"}, timeout=9).json(),
                    requests.get(f"{server.url}/models", timeout=9).json(),
                )
            )
            there = await whole_json(session, f"{server.url}/chat/completions")
            async with session.post(echo.url, json={**BODY, "model": "mine"}) as response:
                here = await response.json()
    assert outside["choices"][0]["message"]["content"] == "The answer is 5."
    assert there["choices"][0]["message"]["content"] == "The answer is 5."
    assert inside["choices"][0]["message"]["content"] == "Hello"
    assert here["choices"][0]["message"]["content"] == "Hello"
    assert models == {"data": []}
    assert len(echo.seen) == 2
