"""The proxy when something fails: kills, agents that leave, full disks, Ctrl-C, compression."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import brotli  # type: ignore[import-untyped]
import httpx2
import pytest
import zstandard
from starlette.types import Message, Scope

from orbiter.train import StorageError, TrajectoryDataset
from orbiter.train.capture import proxy_app
from tests.capture.server import ModelServer
from tests.capture.test_proxy import proxied
from tests.children import started_child

Json = Any
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
SECONDS = 60.0
"""How long a busy machine may take for what is waited for."""


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


class EndlessModel(ThreadingHTTPServer):
    """Streams words until its client leaves, or answers nothing at all."""

    daemon_threads = True

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.asked, self.left = threading.Event(), threading.Event()
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                model.asked.set()
                try:
                    if model.silent:
                        assert self.connection.recv(1) == b""
                        return
                    self.send_response(200)
                    self.send_header("content-type", "text/event-stream")
                    self.end_headers()
                    while True:
                        delta = {"choices": [{"index": 0, "delta": {"content": "word "}}]}
                        self.wfile.write(b"data: %b\n\n" % json.dumps(delta).encode())
                        time.sleep(0.01)
                except OSError:
                    pass
                finally:
                    model.left.set()

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def endless(*, silent: bool = False) -> Iterator[EndlessModel]:
    model = EndlessModel(silent=silent)
    try:
        yield model
    finally:
        model.shutdown()
        model.server_close()


@contextmanager
def proxy_process(to: str, journal: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `orbiter-train proxy` as a process; yield it and its address."""
    command = [sys.executable, "-m", "orbiter.train.cli", "proxy", "--to", to, "--port", "0"]
    with started_child(
        [*command, "--out", str(journal)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, line.rpartition("base URL to ")[2].partition("/s/")[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_is_stored_before_its_end_is_handed_on(stream: bool) -> None:
    dataset, stored = TrajectoryDataset(), list[int]()
    with ModelServer() as server:
        app = proxy_app(server.url, dataset)
        body = json.dumps({**BODY, "stream": stream}).encode()
        scope: Scope = {
            "type": "http", "method": "POST", "path": "/s/x/v1/chat/completions",
            "raw_path": b"/s/x/v1/chat/completions", "query_string": b"", "root_path": "",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        }  # fmt: skip
        events: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        passed = b""

        async def receive() -> Message:
            if not events:
                await asyncio.Event().wait()
            return events.pop()

        async def send(message: Message) -> None:
            nonlocal passed
            passed += message.get("body", b"")
            if not stream or b"[DONE]" in passed:
                stored.append(len(dataset.waiting))

        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
    assert stored
    assert set(stored) == {1}


def test_an_agent_that_leaves_a_stream_cancels_it_and_keeps_what_it_saw() -> None:
    dataset = TrajectoryDataset()
    with endless() as model, proxied(model.url, dataset) as proxy:
        with httpx2.stream(
            "POST", f"{proxy}/s/x/v1/chat/completions", json={**BODY, "stream": True}
        ) as response:
            seen = next(response.iter_text())
        assert "word" in seen
        until(model.left.is_set)
        until(lambda: dataset.waiting)
    (item,) = dataset.waiting
    assert item.metadata["error"] == "the client left before the end"
    assert item.action.startswith("word ")
    assert "finish_reason" not in item.metadata


def test_an_agent_that_leaves_before_the_answer_cancels_the_call() -> None:
    dataset = TrajectoryDataset()
    with endless(silent=True) as model, proxied(model.url, dataset) as proxy:
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{proxy}/s/x/v1/chat/completions", json=BODY, timeout=0.3)
        assert model.asked.is_set()
        until(model.left.is_set)
    assert not dataset.waiting


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_cannot_be_stored_is_not_handed_on_as_whole(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space left on device")

    with (
        ModelServer() as server,
        TrajectoryDataset(path=tmp_path / "journal") as dataset,
        proxied(server.url, dataset) as proxy,
    ):
        monkeypatch.setattr("orbiter.train.trajectory.journal.StoreJournal.write_entry", full)
        url, body = f"{proxy}/s/x/v1/chat/completions", {**BODY, "stream": stream}
        if stream:
            with pytest.raises(httpx2.HTTPError):
                httpx2.post(url, json=body)
        else:
            answer = httpx2.post(url, json=body)
            assert answer.status_code == 507
            assert "no space left" in answer.json()["error"]["message"]


@pytest.mark.slow
def test_ctrl_c_ends_the_proxy_within_seconds_although_streams_are_open(tmp_path: Path) -> None:
    journal = tmp_path / "traces.journal"
    with endless() as model, proxy_process(model.url, journal) as (process, address):
        with httpx2.stream(
            "POST", f"{address}/s/x/v1/chat/completions", json={**BODY, "stream": True}
        ) as response:
            next(response.iter_text())
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        assert time.monotonic() - begun < 20
        assert process.returncode == 0, err
        assert "the captured calls are in" in out
    with TrajectoryDataset(path=journal) as dataset:
        (item,) = dataset.waiting
    assert item.metadata["error"]
    assert item.action.startswith("word ")


@pytest.mark.slow
def test_a_proxy_that_is_killed_loses_no_reply_that_was_handed_on(tmp_path: Path) -> None:
    moments, finished = random.Random(5), 0

    def echo(body: Json) -> str:
        return "echo of " + str(body["messages"][-1]["content"]) * 50

    with ModelServer(reply=echo) as server:
        for attempt in range(20):
            journal, whole = tmp_path / f"{attempt}.journal", list[str]()
            with proxy_process(server.url, journal) as (process, address):

                def talk(name: int, address: str = address, whole: list[str] = whole) -> None:
                    url = f"{address}/s/e{name}/v1/chat/completions"
                    with httpx2.Client(timeout=20) as client:
                        for number in range(1_000_000):
                            said = f"<{name}-{number}>"
                            messages = [{"role": "user", "content": said}]
                            body = {**BODY, "messages": messages, "stream": number % 2 == 1}
                            try:
                                answer = client.post(url, json=body)
                            except httpx2.HTTPError:
                                return
                            assert answer.status_code == 200
                            whole.append(said)

                threads = [threading.Thread(target=talk, args=(name,)) for name in range(3)]
                for thread in threads:
                    thread.start()
                until(partial(bool, whole))
                time.sleep(moments.uniform(0.0, 0.3))
                process.kill()
                for thread in threads:
                    thread.join()
            with TrajectoryDataset(path=journal) as dataset:
                kept = {
                    str(item.messages[-1]["content"]) for item in dataset.waiting if item.messages
                }
            assert set(whole) <= kept, f"attempt {attempt} lost {set(whole) - kept}"
            finished += len(whole)
    assert finished > 20


class Coding(BaseHTTPRequestHandler):
    """A model that answers in the encoding that a request is in."""

    protocol_version = "HTTP/1.1"
    encode: ClassVar[dict[str, Callable[[bytes], bytes]]] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "br": brotli.compress,
        "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
        "identity": lambda data: data,
    }

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        encoding = self.headers["content-encoding"] or "identity"
        answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "5"}}]}
        data = self.encode[encoding](json.dumps(answer).encode())
        self.send_response(200)
        for name, value in (
            ("content-type", "application/json"),
            ("content-encoding", encoding),
            ("content-length", str(len(data))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.server.sent = data  # type: ignore[attr-defined]  # for the test to compare
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("encoding", sorted(Coding.encode))
def test_compressed_requests_and_answers_are_captured_and_passed_on(encoding: str) -> None:
    dataset, model = TrajectoryDataset(), ThreadingHTTPServer(("127.0.0.1", 0), Coding)
    threading.Thread(target=model.serve_forever, daemon=True).start()
    body = Coding.encode[encoding](json.dumps(BODY).encode())
    to = f"http://127.0.0.1:{model.server_address[1]}/v1"
    headers = {"content-encoding": encoding}
    with (
        proxied(to, dataset) as proxy,
        httpx2.stream(
            "POST", f"{proxy}/s/x/v1/chat/completions", content=body, headers=headers
        ) as response,
    ):
        raw = b"".join(response.iter_raw())
        assert response.headers["content-encoding"] == encoding
    model.shutdown()
    model.server_close()
    assert raw == model.sent  # type: ignore[attr-defined]  # set by the handler
    (item,) = dataset.waiting
    assert (item.action, item.messages) == ("5", BODY["messages"])
