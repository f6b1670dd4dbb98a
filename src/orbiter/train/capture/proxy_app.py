"""The proxy's ASGI application; `proxy.py` documents its paths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpcore2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from orbiter.train.capture.encoding import narrowed
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.redact import Redact, Redactor, keys_in
from orbiter.train.capture.sessions import Sessions
from orbiter.train.capture.wire import recognise
from orbiter.train.errors import StorageError, TrainError
from orbiter.train.net import refuse_web_pages, same_secret
from orbiter.train.redact import mask_text
from orbiter.train.trajectory import TrajectoryDataset

TOKEN_HEADER = "x-orbiter-token"
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te",
     b"trailer", b"transfer-encoding", b"upgrade", b"host", b"content-length",
     TOKEN_HEADER.encode())
)  # fmt: skip
"""Headers that apply to one connection only."""
_BROKEN = (
    httpcore2.NetworkError,
    httpcore2.TimeoutException,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
)
"""Exceptions from an unreachable or failing model server."""
_CONNECT_SECONDS = 120.0
"""Generous, because a thousand agents may start at once; clients have their own timeouts."""
_URL_MARKS = "%/:=&?~#+!$,;'@()*[]"
"""URL characters that are not escaped."""
Header = tuple[bytes, bytes]
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def make_app(
    to: str,
    dataset: TrajectoryDataset,
    *,
    token: str | None,
    api_key: str | None,
    redact: Redact,
) -> Starlette:
    """Return the application."""
    proxy = _Proxy(to, Sessions(dataset, Redactor(redact)), token=token, api_key=api_key)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await proxy.close()

    async def unknown(request: Request, _error: Exception) -> Response:
        where = "/s/SESSION/v1/..., where SESSION names the episode"
        return _problem(404, f"{request.url.path} is not served here; expected {where}")

    return Starlette(
        routes=[
            Route("/s/{session}", proxy.open, methods=["POST"]),
            Route("/s/{session}/reward", proxy.reward, methods=["POST"]),
            Route("/s/{session}/step_reward", proxy.step_reward, methods=["POST"]),
            Route("/s/{session}/{path:path}", proxy.forward, methods=_METHODS),
        ],
        exception_handlers={404: unknown, HTTPException: _refused, TrainError: _refused_by_us},
        lifespan=lifespan,
    )


class _Proxy:
    """One upstream, its connections, and the sessions."""

    def __init__(
        self, to: str, sessions: Sessions, *, token: str | None, api_key: str | None
    ) -> None:
        self._to = to.rstrip("/")
        self._sessions = sessions
        self._token, self._api_key = token, api_key
        # Without user name and password, which must not appear in the Host header.
        self._host = urlsplit(to).netloc.rpartition("@")[2].encode()
        # httpx2's connection pool, used directly: the client on top would double the cost per
        # request.
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=256, keepalive_expiry=30.0, retries=1
        )

    async def close(self) -> None:
        self._sessions.close()
        await self._pool.aclose()

    async def open(self, request: Request) -> Response:
        """Record a session's agent and task, before its first call."""
        self._admit(request)
        given = await _json(request)
        name = request.path_params["session"]
        self._sessions.describe(name, given.get("agent"), given.get("task_id"))
        return JSONResponse({"episode_id": name})

    async def reward(self, request: Request) -> Response:
        """Set the reward of a session's episode."""
        self._admit(request)
        given = await _json(request)
        name = request.path_params["session"]
        kept = self._sessions.reward(name, given.get("reward"), given.get("gamma", 1.0))
        return JSONResponse({"episode_id": name, "items": kept})

    async def step_reward(self, request: Request) -> Response:
        """Reward the latest call of a session."""
        self._admit(request)
        given = await _json(request)
        name = request.path_params["session"]
        self._sessions.step_reward(name, given.get("reward"))
        return JSONResponse({"episode_id": name})

    async def forward(self, request: Request) -> Response:
        """Forward a request; capture it if it goes to a model."""
        headers = self._admit(request)
        path = f"/{request.path_params['path']}"
        body = await request.body()
        recognised = recognise(request.method, self._host.decode().partition(":")[0], path)
        exchange = None
        if recognised is not None:
            episode = self._sessions.episode(request.path_params["session"])
            exchange = episode.begin(
                recognised,
                body,
                # The proxy's own key is a secret of these texts as well.
                (*keys_in(request.headers.raw), *([self._api_key] if self._api_key else ())),
                address=f"{request.method} {path}",
                encoding=request.headers.get("content-encoding", ""),
            )
            headers = [
                # The reply must stay readable here, so encodings that are not installed are not
                # offered.
                (name, narrowed(value) if name.lower() == b"accept-encoding" else value)
                for name, value in headers
            ]
        query = f"?{request.url.query}" if request.url.query else ""
        sent = httpcore2.Request(
            request.method,
            quote(self._address(path), safe=_URL_MARKS) + query,
            headers=[(b"host", self._host), *headers, (b"content-length", b"%d" % len(body))],
            content=body,
            extensions={"timeout": {"connect": _CONNECT_SECONDS}},
        )
        return _ForwardedCall(self._pool, sent, exchange, self._to)

    def _address(self, path: str) -> str:
        # Both addresses may contain /v1, and the model's server expects it once.
        if self._to.endswith("/v1"):
            path = path.removeprefix("/v1")
        return self._to + path

    def _admit(self, request: Request) -> list[Header]:
        """Return the headers to pass on; refuse a client without the token."""
        headers = [(n, v) for n, v in request.headers.raw if n.lower() not in _HOP_BY_HOP]
        if self._token is None:
            # Without a token only this machine's programs may pass, not pages in a browser.
            refused = refuse_web_pages(request.headers.raw)
            if refused is not None:
                raise HTTPException(refused.status, refused.message)
            return headers
        if same_secret(request.headers.get(TOKEN_HEADER, "").encode("latin-1"), self._token):
            return headers
        if any(same_secret(key, self._token) for key in keys_in(request.headers.raw)):
            return self._with_own_key(headers)
        raise HTTPException(401, f"the token is missing or wrong: send it as {TOKEN_HEADER}")

    def _with_own_key(self, headers: list[Header]) -> list[Header]:
        """Replace the token by the model's key."""
        key = (self._api_key or "").encode()
        named = {b"authorization": b"Bearer " + key, b"x-api-key": key, b"api-key": key}
        kept = [(name, value) for name, value in headers if name not in named]
        # In the headers in which the client sent its key, as providers differ.
        given = [name for name, _ in headers if name in named]
        return [*kept, *((name, named[name]) for name in given)] if key else kept


class _ForwardedCall(Response):
    """One call to the model: its response is passed on byte for byte as it arrives.

    A captured reply that is not a stream is held back until its record is on disk, and so is the
    event that ends a stream, so a reply that the agent has seen in full is never lost. If the agent
    leaves, the call to the model is cancelled.
    """

    def __init__(
        self,
        pool: httpcore2.AsyncConnectionPool,
        sent: httpcore2.Request,
        exchange: Exchange | None,
        model: str,
    ) -> None:
        self._pool, self._sent, self._exchange, self._model = pool, sent, exchange, model
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.ensure_future(self._answer(scope, receive, send))
        # Disconnecting is only noticed by reading from the client.
        leaving = asyncio.ensure_future(_client_left(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                answering.cancel()
                # The cancelled call must close its exchange before this response ends.
                await asyncio.wait((answering,))
        if not answering.cancelled():
            answering.result()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the call and pass its response on; the exchange is closed in every case."""
        # The reason if this task is cancelled; other outcomes replace it or have closed the
        # exchange.
        why = "the client left before the end"
        try:
            response = await self._pool.handle_async_request(self._sent)
            try:
                await self._pass_on(response, send)
            finally:
                await response.aclose()
        except _BROKEN as error:
            why = f"{type(error).__name__}: {error}"
            self._close(why)
            if not self._begun:
                # otherwise returning now breaks the client's connection, as intended
                problem = _problem(502, mask_text(f"{self._model} did not answer: {why}"))
                await problem(scope, receive, send)
        except StorageError as error:
            if not self._begun:
                problem = _problem(507, f"the call could not be captured: {error}")
                await problem(scope, receive, send)
        finally:
            self._close(why)

    _begun = False
    """Whether the response has begun to be passed on."""

    async def _pass_on(self, response: httpcore2.Response, send: Send) -> None:
        exchange, held_back = self._exchange, list[bytes]()
        if exchange is not None:
            exchange.answered(response.status, response.headers)
        async for chunk in response.aiter_stream():
            held_back.append(chunk)
            if exchange is not None:
                exchange.feed(chunk)
                _check_stored(exchange)
                if not exchange.streamed:
                    # The whole reply is held back until its record is on disk.
                    continue
            await self._send(response, send, held_back)
        if exchange is not None:
            exchange.close()
            _check_stored(exchange)
        await self._send(response, send, held_back)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, response: httpcore2.Response, send: Send, held_back: list[bytes]) -> None:
        """Pass on the chunks held back so far; the headers go before the first one."""
        if not self._begun:
            self._begun = True
            kept = [(n, v) for n, v in response.headers if n.lower() not in _NOT_PASSED]
            await send({"type": "http.response.start", "status": response.status, "headers": kept})
        while held_back:
            await send({"type": "http.response.body", "body": held_back.pop(0), "more_body": True})

    def _close(self, why: str) -> None:
        if self._exchange is not None:
            self._exchange.close(why)


async def _client_left(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_stored(exchange: Exchange) -> None:
    """Raise the error if a call has ended and could not be written to the disk."""
    if isinstance(exchange.failure, StorageError):
        raise exchange.failure


_NOT_PASSED = frozenset((b"connection", b"keep-alive", b"transfer-encoding"))


async def _json(request: Request) -> dict[str, Any]:
    raw = await request.body()
    try:
        given = json.loads(raw or b"{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return given


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "orbiter_proxy"}}, status)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, error.detail)


async def _refused_by_us(_request: Request, error: Exception) -> Response:
    return _problem(400, str(error))
