"""Wrap aiohttp: `ClientSession._request` is where every call of a session goes out.

A response is captured as its bytes are read from `ClientResponse.content`. To answer a request in
this process, its connection is made of memory: the answer is parsed by aiohttp itself, so that the
response is a real one.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from orbiter.train.capture.clients.shared import (
    LEFT,
    Foreign,
    answerer_of,
    begin,
    describe_error,
    is_answered,
    raw_headers,
    recognised_here,
)
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.in_process import Answerer


class _InProcessRequest(NamedTuple):
    """A request that is to be answered in this process."""

    answerer: Answerer
    body: bytes


_PENDING: ContextVar[_InProcessRequest | None] = ContextVar("orbiter_aiohttp_pending", default=None)


def wrap(library: ModuleType) -> None:
    """Wrap the sessions of aiohttp."""
    session, connector = library.ClientSession, library.BaseConnector
    connector.connect = _connected(library, connector.connect)
    # Capture is outermost: it sees a call the same way, whatever answers it.
    session._request = _captured(_answered(library, session._request))


def _captured(send: Callable[..., Awaitable[Foreign]]) -> Callable[..., Awaitable[Foreign]]:
    @functools.wraps(send)
    async def captured(session: Foreign, method: str, url: Foreign, **kwargs: Foreign) -> Foreign:
        target = _target(session, url)
        recognised = recognised_here(method.upper(), target.host or "", target.path)
        if recognised is None:
            return await send(session, method, url, **kwargs)
        headers = _headers_of(session, kwargs)
        exchange = begin(
            recognised,
            f"{method.upper()} {target.host}{target.path}",
            await _body_of(session, kwargs),
            raw_headers(headers),
            # The body may be compressed, and is decoded when the item is made.
            next((value for name, value in headers if name.lower() == "content-encoding"), ""),
        )
        try:
            response = await send(session, method, url, **kwargs)
        except BaseException as error:
            # With raise_for_status the status is only in the error.
            exchange.answered(getattr(error, "status", None) or 0, ())
            exchange.close(describe_error(error))
            raise
        exchange.answered(response.status, raw_headers(list(response.headers.items())))
        # Every way to read a response goes through this attribute.
        response.content = _CopyingContent(response.content, exchange)
        return response

    return captured


def _answered(
    library: ModuleType, send: Callable[..., Awaitable[Foreign]]
) -> Callable[..., Awaitable[Foreign]]:
    @functools.wraps(send)
    async def answered(session: Foreign, method: str, url: Foreign, **kwargs: Foreign) -> Foreign:
        target = _target(session, url)
        answerer = answerer_of(method.upper(), target.host or "", target.path)
        body = b"" if answerer is None else await _body_of(session, kwargs)
        if answerer is None or not is_answered(body):
            return await send(session, method, url, **kwargs)
        # An answer that is computed here may take longer than a provider's.
        kwargs["timeout"] = library.ClientTimeout(total=None)
        token = _PENDING.set(_InProcessRequest(answerer, body))
        try:
            return await send(session, method, url, **kwargs)
        finally:
            _PENDING.reset(token)

    return answered


def _target(session: Foreign, url: Foreign) -> Foreign:
    """Return the whole address of a request, as a `yarl.URL`."""
    # A private attribute; a session without it takes whole addresses only.
    base = getattr(session, "_base_url", None)
    target = import_module("yarl").URL(url)
    return target if base is None or target.absolute else base.join(target)


def _headers_of(session: Foreign, kwargs: dict[str, Foreign]) -> list[tuple[str, str]]:
    given = kwargs.get("headers") or {}
    own = list(given.items()) if hasattr(given, "items") else list(given)
    # The session's headers first: the keys that are to be removed may be in either.
    return [(str(name), str(value)) for name, value in (*session.headers.items(), *own)]


async def _body_of(session: Foreign, kwargs: dict[str, Foreign]) -> bytes:
    """Return a request's body; one that can be read only once is replaced by its bytes."""
    if kwargs.get("json") is not None:
        # The session's own serialiser, so that these are the bytes that are sent.
        text = session.json_serialize(kwargs["json"])
        return text.encode() if isinstance(text, str) else bytes(text)
    data: Foreign = kwargs.get("data")
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if hasattr(data, "__aiter__"):
        # The library would find an exhausted iterator, so it gets the bytes.
        kwargs["data"] = b"".join([piece async for piece in data])
        return bytes(kwargs["data"])
    if callable(read := getattr(data, "read", None)):
        # A file can be read once, so the library gets the bytes as well.
        piece = read()
        kwargs["data"] = piece.encode() if isinstance(piece, str) else piece
        return bytes(kwargs["data"])
    return b""  # a form, or nothing: no request to a model


class _CopyingContent:
    """A response's `content` that copies what is read from it to an exchange."""

    def __init__(self, content: Foreign, exchange: Exchange) -> None:
        self._content, self._exchange = content, exchange

    def __getattr__(self, name: str) -> Foreign:
        return getattr(self._content, name)

    async def read(self, n: int = -1) -> bytes:
        """Read some bytes, or all that are left."""
        if n >= 0:
            return await self._taken(self._content.read(n))
        pieces: list[bytes] = []  # piece by piece, so that what came before an error is kept
        while piece := await self.readany():
            pieces.append(piece)
        return b"".join(pieces)

    async def readany(self) -> bytes:
        """Read the bytes that have arrived."""
        return await self._taken(self._content.readany())

    async def readexactly(self, n: int) -> bytes:
        """Read exactly `n` bytes."""
        return await self._taken(self._content.readexactly(n))

    async def readline(self, **limits: Foreign) -> bytes:
        """Read a line."""
        return await self._taken(self._content.readline(**limits))

    async def readuntil(self, separator: bytes = b"\n", **limits: Foreign) -> bytes:
        """Read up to a separator."""
        return await self._taken(self._content.readuntil(separator, **limits))

    async def readchunk(self) -> tuple[bytes, bool]:
        """Read a chunk of the transfer encoding, and say whether it ends here."""
        ends = False

        async def piece() -> bytes:
            nonlocal ends
            pair: tuple[bytes, bool] = await self._content.readchunk()
            ends = pair[1]
            return pair[0]

        return await self._taken(piece()), ends

    def read_nowait(self, n: int = -1) -> bytes:
        """Read the bytes that have arrived, without waiting."""
        piece: bytes = self._content.read_nowait(n)
        self._took(piece)
        return piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Yield pieces of at most `n` bytes."""
        while piece := await self.read(n):
            yield piece

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield pieces as they arrive."""
        while piece := await self.readany():
            yield piece

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        """Yield the chunks of the transfer encoding."""
        while (pair := await self.readchunk()) != (b"", False):
            yield pair

    def set_exception(self, error: BaseException, *args: Foreign) -> None:
        """End the content, as closing or releasing the response does."""
        # An exchange that has already ended normally ignores this.
        self._exchange.close(LEFT)
        self._content.set_exception(error, *args)

    async def _taken(self, read: Awaitable[bytes]) -> bytes:
        try:
            piece = await read
        except Exception as error:
            self._exchange.close(describe_error(error))
            raise
        self._took(piece)
        return piece

    def _took(self, piece: bytes) -> None:
        self._exchange.feed(piece, decoded=True)
        if self._content.at_eof():
            self._exchange.close()


def _connected(
    library: ModuleType, connect: Callable[..., Awaitable[Foreign]]
) -> Callable[..., Awaitable[Foreign]]:
    @functools.wraps(connect)
    async def connected(
        connector: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign
    ) -> Foreign:
        pending = _PENDING.get()
        if pending is None:
            return await connect(connector, request, *args, **kwargs)
        loop = asyncio.get_running_loop()
        protocol = library.client_proto.ResponseHandler(loop)
        # From here on aiohttp behaves as if a socket had been opened.
        protocol.connection_made(_Memory(protocol, request, pending))
        return library.connector.Connection(connector, request.connection_key, protocol, loop)

    return connected


class _Memory(asyncio.Transport):
    """A connection in memory: ignores the request, which the answerer has, and sends the answer."""

    def __init__(self, protocol: Foreign, request: Foreign, pending: _InProcessRequest) -> None:
        super().__init__()
        self._protocol, self._request, self._pending = protocol, request, pending
        self._closed = False
        self._ready = asyncio.Event()
        self._ready.set()
        # Started at once: the request's body is known, so there is nothing to wait for.
        self._answering = asyncio.ensure_future(self._answer())

    async def _answer(self) -> None:
        """Hand the answer to the protocol in the form of HTTP."""
        try:
            url = self._request.url
            answer = await self._pending.answerer.handle(
                url.path, self._request.headers, self._pending.body
            )
            # The answer's own framing does not fit the chunks that are sent here.
            kept = [(n, v) for n, v in answer.headers if n.lower() not in _FRAMING]
            lines = [f"HTTP/1.1 {answer.status} Answered", *(f"{n}: {v}" for n, v in kept)]
            # The connection must not return to the pool: there is no server at its other end.
            lines += ["transfer-encoding: chunked", "connection: close", "", ""]
            self._protocol.data_received("\r\n".join(lines).encode("latin-1", "replace"))
            async for chunk in answer.chunks:
                # The reader is slower than the answer; the pause is the transport's flow control.
                await self._ready.wait()
                if chunk:
                    self._protocol.data_received(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self._protocol.data_received(b"0\r\n\r\n")
        except Exception as error:  # the agent sees it as a broken connection, as over a network
            self._lost(ConnectionError(describe_error(error)))

    def write(self, _data: Foreign) -> None:
        """Ignore the request, whose body the answerer gets as it was given."""

    def pause_reading(self) -> None:
        """Pause the answer."""
        self._ready.clear()

    def resume_reading(self) -> None:
        """Resume the answer."""
        self._ready.set()

    def is_closing(self) -> bool:
        """Return whether the connection is closed."""
        return self._closed

    def close(self) -> None:
        """Stop the answer."""
        self._answering.cancel()
        self._lost(None)

    def abort(self) -> None:
        """Stop the answer."""
        self.close()

    def get_extra_info(self, _name: str, default: Foreign = None) -> Foreign:
        """Return the default, since there is no socket."""
        return default

    def _lost(self, error: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            # Deferred, because the protocol may still be processing the data passed to it last.
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)


_FRAMING = frozenset({"content-length", "transfer-encoding", "connection"})
"""Headers about how a body is framed; they are dropped because this file decides the framing."""
