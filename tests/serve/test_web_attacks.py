"""What a web page or a forged request may try on the three servers that need no token."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from orbiter.train import TrajectoryDataset
from orbiter.train.capture import proxy_app
from orbiter.train.engine.policy import Policy
from orbiter.train.http_server import make_server
from orbiter.train.net import bind
from orbiter.train.report.live import LiveServer
from orbiter.train.serve import PolicyServer
from tests.capture.server import ModelServer
from tests.report.folders import training

Kind = Literal["serve", "proxy", "report"]
BODY = json.dumps(
    {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
).encode()
GOOD = b"Host: 127.0.0.1\r\n"
FORGED: dict[str, bytes] = {
    "another site": b"Host: evil.example\r\n",
    "another site and our port": b"Host: evil.example:8000\r\n",
    "our address as a part": b"Host: 127.0.0.1.evil.example\r\n",
    "our name as a part": b"Host: localhost.evil.example\r\n",
    "our name as a user": b"Host: localhost@evil.example\r\n",
    "a path in the host": b"Host: x/health?\r\n",
    "a path after our name": b"Host: localhost/health?\r\n",
    "a query in the host": b"Host: localhost?x\r\n",
    "a fragment in the host": b"Host: localhost#x\r\n",
    "no host": b"",
    "an empty host": b"Host: \r\n",
    "two hosts": b"Host: localhost\r\nHost: evil.example\r\n",
    "two hosts in one": b"Host: localhost, evil.example\r\n",
    "a number as an address": b"Host: 2130706433\r\n",
    "hex as an address": b"Host: 0x7f000001\r\n",
    "octal as an address": b"Host: 0177.0.0.1\r\n",
    "a short address": b"Host: 127.1\r\n",
    "every address": b"Host: 0.0.0.0\r\n",
    "a broken address": b"Host: [::1\r\n",
    "a broken port": b"Host: localhost:x\r\n",
    "a port too many": b"Host: localhost:1:2\r\n",
    "a large port": b"Host: localhost:99999\r\n",
    "a space": b"Host: local host\r\n",
    "bytes that are no text": b"Host: \xff\xfe\r\n",
    "a forwarded host": b"Host: evil.example\r\nX-Forwarded-Host: localhost\r\n",
    "a foreign page": GOOD + b"Origin: https://evil.example\r\n",
    "a foreign page of our port": GOOD + b"Origin: http://evil.example:8000\r\n",
    "a page without an origin": GOOD + b"Origin: null\r\n",
    "an empty origin": GOOD + b"Origin: \r\n",
    "a page that pretends": GOOD + b"Origin: http://localhost.evil.example\r\n",
    "a page with our name as a user": GOOD + b"Origin: http://localhost@evil.example\r\n",
    "a browser extension": GOOD + b"Origin: chrome-extension://abc\r\n",
    "a file": GOOD + b"Origin: file://\r\n",
    "two origins": GOOD + b"Origin: http://localhost\r\nOrigin: https://evil.example\r\n",
    "a cross-site fetch": GOOD + b"Sec-Fetch-Site: cross-site\r\n",
    "a cross-site fetch in capitals": GOOD + b"Sec-Fetch-Site: CROSS-SITE\r\n",
}  # fmt: skip
PATHS: dict[Kind, tuple[bytes, bytes]] = {
    "serve": (b"POST", b"/v1/chat/completions"),
    "proxy": (b"POST", b"/s/one/v1/chat/completions"),
    "report": (b"GET", b"/data"),
}
SAYS: dict[Kind, bytes] = {"serve": b'"choices"', "proxy": b'"choices"', "report": b'"runs"'}
"""A part of every answer that a request was served."""

NOT_THE_TOKEN = (
    b"",
    b"Authorization: Bearer \r\n",
    b"X-Api-Key: \r\n",
    b"Authorization: Basic a secret of ours\r\n",
    b"Authorization: Bearer wrong\r\nAuthorization: Bearer a secret of ours\r\n",
    b"X-Original-URL: /health\r\n",
)


@asynccontextmanager
async def opened(kind: Kind, policy: Policy, folder: Path) -> AsyncIterator[int]:
    """Open one of the servers and yield its port."""
    if kind == "serve":
        async with PolicyServer(policy, name="tiny") as server:
            yield int(server.url.split(":")[2].split("/")[0])
    elif kind == "proxy":
        with ModelServer() as model, TrajectoryDataset(path=folder / "journal") as dataset:
            app = proxy_app(model.url, dataset)
            with bind("127.0.0.1", 0) as listener:
                running = make_server(app, extra="capture", lifespan="on", closing_seconds=1)
                task = asyncio.create_task(running._serve(sockets=[listener]))
                while not running.started:  # noqa: ASYNC110 - uvicorn has no event
                    await asyncio.sleep(0.001)
                yield listener.getsockname()[1]
                running.should_exit = True
                await task
    else:
        with LiveServer(training(folder / "run", steps=2), "127.0.0.1", 0) as live:
            thread = threading.Thread(target=live.serve_forever, args=(0.01,))
            thread.start()
            yield live.server_address[1]
            live.shutdown()
            thread.join()


async def ask(port: int, method: bytes, target: bytes, headers: bytes, version: bytes) -> bytes:
    """Send one request as it is, and return all that comes back."""
    body = BODY if method == b"POST" else b""
    length = b"Content-Length: %d\r\nContent-Type: text/plain\r\n" % len(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"%b %b %b\r\n%bConnection: close\r\n%b\r\n%b"
        % (method, target, version, headers, length, body)
    )
    try:
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("kind", PATHS)
async def test_no_forged_request_is_served(kind: Kind, policy: Policy, tmp_path: Path) -> None:
    method, path = PATHS[kind]
    async with opened(kind, policy, tmp_path) as port:
        for version in (b"HTTP/1.1", b"HTTP/1.0"):
            served = await ask(port, method, path, GOOD, version)
            assert SAYS[kind] in served, served
            for what, headers in FORGED.items():
                reply = await ask(port, method, path, headers, version)
                assert SAYS[kind] not in reply, what
                assert not reply or reply.split(b" ")[1].startswith(b"4"), (what, reply[:200])


@pytest.mark.parametrize("kind", PATHS)
async def test_an_absolute_target_does_not_replace_the_host(
    kind: Kind, policy: Policy, tmp_path: Path
) -> None:
    method, path = PATHS[kind]
    async with opened(kind, policy, tmp_path) as port:
        for target in (b"http://localhost" + path, b"http://127.0.0.1" + path):
            reply = await ask(port, method, target, FORGED["another site"], b"HTTP/1.1")
            assert SAYS[kind] not in reply


async def test_no_path_gets_past_the_token(policy: Policy) -> None:
    async with PolicyServer(policy, name="tiny", token="a secret of ours") as server:
        port = int(server.url.split(":")[2].split("/")[0])
        right = GOOD + b"Authorization: Bearer a secret of ours\r\n"
        assert b'"data"' in await ask(port, b"GET", b"/v1/models", right, b"HTTP/1.1")
        hosts = (b"localhost", b"x/health?", b"x/health#", b"localhost/health")
        targets = (b"/v1/models", b"//v1/models", b"/health/../v1/models", b"/v1/models?/health")
        for host, target, further in itertools.product(hosts, targets, NOT_THE_TOKEN):
            headers = b"Host: %b\r\n%b" % (host, further)
            reply = await ask(port, b"GET", target, headers, b"HTTP/1.1")
            assert b'"data"' not in reply, (host, target, further)
