"""`record` sees requests as it sees httpx: any call, read in any way."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from orbiter.train import DataError, TrajectoryDataset, TrajectoryItem
from orbiter.train.capture import record
from tests.capture.server import ModelServer
from tests.children import run_child

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


def test_a_library_that_is_imported_later_is_wrapped_then(server: ModelServer) -> None:
    program = f"""
from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record
dataset = TrajectoryDataset()
with record(dataset):
    import requests
    requests.post({chat(server)!r}, json={BODY})
print(len(dataset.waiting))
"""
    done = run_child([sys.executable, "-c", program])
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr
