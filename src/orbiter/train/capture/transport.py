"""See every model call where its bytes leave httpx and httpx2, and answer some in this process.

The clients' `send` is wrapped once per process; outside of any episode the wrapper only reads two
context variables. Inside, a request to the path of a model API becomes an exchange: its body is
read, and its response, or stream, is fed to the exchange on its way to the caller. A library that
is imported later is wrapped then; none is imported here. Clients on other transports (requests,
aiohttp, gRPC) are not seen; use the proxy for those.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from orbiter.train.capture.context import OPEN
from orbiter.train.capture.episode import CURRENT
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.in_process import (
    ANSWERING,
    Answerer,
    Answering,
    wrap_async,
    wrap_sync,
)
from orbiter.train.capture.redact import keys_in
from orbiter.train.capture.threads import follow_threads
from orbiter.train.capture.wire import Recognised, recognise

Foreign = Any
"""An object of a library that need not be installed."""

LIBRARIES = ("httpx2", "httpx")


@contextmanager
def answered_by(answerer: Answerer, *, models: Sequence[str] | None = None) -> Iterator[None]:
    """Send model calls made inside the block to `answerer`, in this process and without HTTP.

        with answered_by(session):
            await agent(task)  # its openai, anthropic or httpx clients reach the session

    Tasks and threads started in the block belong to it; `record` sees its calls as usual.

    Args:
        answerer: Anything with `takes`, `handle` and `handle_blocking`, such as a `LiveSession`.
        models: Only calls that name one of these models, so that a judge or a helper model can
            still be reached outside; None sends every call to the answerer.
    """
    watch()
    follow_threads()
    before = ANSWERING.get()
    ANSWERING.set(Answering(answerer, None if models is None else frozenset(models)))
    try:
        yield
    finally:
        ANSWERING.set(before)  # not reset(): a fixture may exit in another context


@functools.cache
def watch() -> None:
    """Wrap the libraries that are imported, and the others on their import; once per process."""
    waiting = {name for name in LIBRARIES if name not in sys.modules}
    for name in LIBRARIES:
        if name in sys.modules:
            _wrap(sys.modules[name])
    if waiting:
        sys.meta_path.insert(0, _WhenImported(waiting))


class _WhenImported:
    """An import hook that wraps a library after it is loaded, and changes nothing else."""

    def __init__(self, waiting: set[str]) -> None:
        self._waiting = waiting

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        self._waiting.discard(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            _wrap(module)

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]  # of this one loader
        return spec


def _wrap(library: ModuleType) -> None:
    # Capture is outermost: it sees a call the same way, whoever answers it.
    answered, answered_async = library.Client.send, library.AsyncClient.send
    library.Client.send = _sync_send(library, wrap_sync(library, answered))
    library.AsyncClient.send = _async_send(library, wrap_async(library, answered_async))


def _sync_send(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    class Stream(_Stream, library.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            try:
                for chunk in self._stream:
                    self._exchange.feed(chunk)
                    yield chunk
            except Exception as error:
                self._exchange.close(_said(error))
                raise
            self._exchange.close()

        def close(self) -> None:
            self._exchange.close(_LEFT)
            self._stream.close()

    @functools.wraps(send)
    def captured(client: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign) -> Foreign:
        recognised = _recognised(request)
        if recognised is None:
            return send(client, request, *args, **kwargs)
        exchange = _begin(recognised, request, request.read())
        try:
            response = send(client, request, *args, **kwargs)
        except BaseException as error:
            exchange.close(_said(error))
            raise
        return _carried(exchange, response, Stream)

    return captured


def _async_send(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    class Stream(_Stream, library.AsyncByteStream):  # type: ignore[misc, name-defined]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for chunk in self._stream:
                    self._exchange.feed(chunk)
                    yield chunk
            except Exception as error:
                self._exchange.close(_said(error))
                raise
            self._exchange.close()

        async def aclose(self) -> None:
            self._exchange.close(_LEFT)
            await self._stream.aclose()

    @functools.wraps(send)
    async def captured(
        client: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign
    ) -> Foreign:
        recognised = _recognised(request)
        if recognised is None:
            return await send(client, request, *args, **kwargs)
        exchange = _begin(recognised, request, await request.aread())
        try:
            response = await send(client, request, *args, **kwargs)
        except BaseException as error:
            exchange.close(_said(error))
            raise
        return _carried(exchange, response, Stream)

    return captured


class _Stream:
    """A response stream that copies what passes through it to an exchange."""

    def __init__(self, stream: Foreign, exchange: Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    @property
    def elapsed(self) -> Foreign:
        """Return the elapsed time, which the response reads from its stream."""
        return self._stream.elapsed


_LEFT = "closed before the end"


def _recognised(request: Foreign) -> Recognised | None:
    """Return the API of a request made inside an episode; None if it is not to be captured."""
    url = request.url
    return recognised_here(request.method, url.host, url.path)


def recognised_here(method: str, host: str, path: str) -> Recognised | None:
    """Return the API of a request from the running code; None if it is not to be captured.

    A model request outside every episode is counted, to explain later why nothing was captured.
    """
    recognised = recognise(method, host, path)
    episode = CURRENT.get()
    if episode is None or episode.over:
        if OPEN.blocks and recognised is not None and recognised.retrieves is None:
            OPEN.stray()
        return None
    if recognised is None:
        episode.note_other(f"{method} {host}{path}")
    return recognised


def _begin(recognised: Recognised, request: Foreign, body: bytes) -> Exchange:
    episode = CURRENT.get()
    assert episode is not None
    return episode.begin(
        recognised,
        body,
        keys_in(request.headers.raw),
        address=f"{request.method} {request.url.host}{request.url.path}",
        encoding=request.headers.get("content-encoding", ""),
    )


def _carried(
    exchange: Exchange, response: Foreign, stream: Callable[[Foreign, Exchange], Foreign]
) -> Foreign:
    """Give the exchange the whole response, or arrange that it sees the stream."""
    exchange.answered(response.status_code, response.headers.raw)
    if response.is_stream_consumed or response.is_closed:
        exchange.feed(response.content, decoded=True)
        exchange.close()
        return response
    response.stream = stream(response.stream, exchange)
    return response


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
