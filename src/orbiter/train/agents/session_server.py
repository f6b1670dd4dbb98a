"""Serve open episodes over HTTP on this machine, for agents in other processes and languages.

    http://127.0.0.1:PORT/s/TOKEN/v1                for OpenAI's clients
    http://127.0.0.1:PORT/s/TOKEN                   for Anthropic's
    POST http://127.0.0.1:PORT/s/TOKEN/reward       {"reward": 0.5}: adds to the episode's reward

The paths are those of the capture proxy, so an agent that was recorded through it needs no change.
Every episode has a token that cannot be guessed, and its URL ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from orbiter.train.agents.episode import OpenEpisode
from orbiter.train.errors import TrainError, require
from orbiter.train.http_server import make_server
from orbiter.train.net import bind, http_address, refuse_web_pages

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

EXTRA = "capture"
"""The extra that installs the HTTP server."""
LARGEST_BODY = 16 << 20
"""The largest accepted request body, in bytes."""
CLOSING_SECONDS = 2.0
"""How long requests may take to end when the last episode has ended."""


class SessionUrl(NamedTuple):
    """The addresses of the policy for one episode."""

    base: str
    """For Anthropic's clients; `base + "/reward"` takes rewards."""
    token: str
    """Clients may also pass it as their API key, which they require."""

    @property
    def openai(self) -> str:
        """The base URL for OpenAI's clients."""
        return f"{self.base}/v1"


class SessionServer:
    """Starts when the first episode opens, and ends with the last one."""

    def __init__(self) -> None:
        """Create a server that starts with the first episode."""
        self._episodes: dict[str, OpenEpisode] = {}
        self._users = 0
        self._running: asyncio.Task[_Running] | None = None

    @asynccontextmanager
    async def open(self, episode: OpenEpisode) -> AsyncIterator[SessionUrl]:
        """Serve an episode for as long as the block lasts.

        Raises:
            MissingExtraError: the extra `capture` is not installed.
        """
        async with self._started() as address:
            with self._registered(episode) as token:
                yield SessionUrl(f"{address}/s/{token}", token)

    @contextmanager
    def _registered(self, episode: OpenEpisode) -> Iterator[str]:
        # 128 bits that cannot be guessed; the URL is all that protects an episode.
        token = secrets.token_urlsafe(16)
        self._episodes[token] = episode
        try:
            yield token
        finally:
            del self._episodes[token]

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[str]:
        self._users += 1
        # Counted before the first await, so that another episode's end cannot stop the server.
        if self._running is None:
            self._running = asyncio.create_task(self._start())
        running = self._running
        try:
            # Shielded: the cancellation of one episode must not end the start that others wait
            # for.
            yield (await asyncio.shield(running)).address
        finally:
            self._users -= 1
            if not self._users:
                # Cleared before the await, so that an episode that opens meanwhile starts a new
                # server.
                self._running = None
                await asyncio.shield(asyncio.ensure_future(_stop(running)))

    async def _start(self) -> _Running:
        require("starlette", extra=EXTRA)
        server = make_server(self._app(), extra=EXTRA, closing_seconds=CLOSING_SECONDS)
        # Bound here, since port 0 is only known from the socket.
        listener = bind("127.0.0.1", 0)
        server.capture_signals = contextlib.nullcontext  # the run handles Ctrl-C
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.001)
        address = http_address("127.0.0.1", listener.getsockname()[1])
        return _Running(address, server, serving, listener)

    def _app(self) -> object:
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/s/{token}/reward", self._reward, methods=["POST"]),
                Route("/s/{token}/step_reward", self._reward, methods=["POST"]),
                Route("/s/{token}/v1/models", self._models),
                Route("/s/{token}/{path:path}", self._answer, methods=["POST"]),
            ]
        )

    def _episode_of(self, request: Request) -> OpenEpisode | None:
        # A web page that knows no token still must not be able to probe for one.
        refused = refuse_web_pages(request.scope["headers"])
        return None if refused else self._episodes.get(request.path_params["token"])

    async def _models(self, request: Request) -> Response:
        if self._episode_of(request) is None:
            return _error(404, "there is no such episode; it may be over")
        from starlette.responses import JSONResponse

        model = {"id": "policy", "object": "model", "owned_by": "orbiter-train"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _answer(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        episode = self._episode_of(request)
        path = f"/{request.path_params['path']}"
        if episode is None:
            return _error(404, "there is no such episode; it may be over")
        if not episode.takes("POST", path):
            return _error(404, f"{path} is not a path of a model's API")
        body = await _body(request)
        if body is None:
            return _error(413, f"the request is larger than {LARGEST_BODY >> 20} MiB")
        answer = await episode.handle(path, request.headers, body)
        return StreamingResponse(answer.chunks, answer.status, dict(answer.headers))

    async def _reward(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        episode = self._episode_of(request)
        if episode is None:
            return _error(404, "there is no such episode; it may be over")
        try:
            given = json.loads(await _body(request) or b"")
            episode.step_reward(given["reward"])
        except (ValueError, TypeError, KeyError, TrainError) as error:
            return _error(400, f'the body must be like {{"reward": 1.0}}: {error}')
        return JSONResponse({"ok": True})


class _Running(NamedTuple):
    address: str
    server: Any
    """uvicorn's, which is loaded late."""
    serving: asyncio.Task[None]
    listener: socket.socket


async def _stop(starting: asyncio.Task[_Running]) -> None:
    try:
        running = await starting
    except (Exception, asyncio.CancelledError):  # it was already raised where it was first awaited
        return
    running.server.should_exit = True
    await running.serving
    running.listener.close()


async def _body(request: Request) -> bytes | None:
    """Return the body; None if it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        # Counted while it arrives, since the header with the length may be missing or wrong.
        body += chunk
        if len(body) > LARGEST_BODY:
            return None
    return bytes(body)


def _error(status: int, message: str) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(
        {"error": {"message": message, "type": "invalid_request_error", "code": None}},
        status,
        # OpenAI's clients would otherwise retry an error that stays the same.
        headers={"x-should-retry": "false"},
    )
