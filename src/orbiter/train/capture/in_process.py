"""Answer an agent's model calls in this process: its HTTP clients never open a socket.

`transport.answered_by` sets the answerer. This file wraps the clients of httpx and httpx2: requests
to a model API, whatever their base URL, go to the answerer, and all others go out as usual. The
client's event hooks run; its timeouts do not, because an answer that is computed here may take
longer than a provider's.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import msgspec

from orbiter.train.capture.wire import recognise

Foreign = Any
"""An object of a library that need not be installed."""


class Answer(Protocol):
    """An HTTP answer for an async client."""

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """The headers."""

    @property
    def chunks(self) -> AsyncIterator[bytes]:
        """The body, in pieces."""


class BlockingAnswer(Protocol):
    """An HTTP answer for a client that blocks its thread."""

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """The headers."""

    @property
    def chunks(self) -> Iterator[bytes]:
        """The body, in pieces."""


class Answerer(Protocol):
    """Answers model requests, as a `LiveSession` does."""

    def takes(self, method: str, path: str) -> bool:
        """Say whether this request can be answered."""

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Awaitable[Answer]:
        """Answer a request; works on any event loop."""

    def handle_blocking(self, path: str, headers: Mapping[str, str], body: bytes) -> BlockingAnswer:
        """Answer a request while the calling thread, which may be any, waits."""


class Answering(NamedTuple):
    """An answerer and the models that it answers for."""

    answerer: Answerer
    models: frozenset[str] | None
    """Model names that are answered here; None means all."""


ANSWERING: ContextVar[Answering | None] = ContextVar("orbiter_answering", default=None)
"""The answerer of the running code's model calls; None lets them go to their own server."""


def wrap_sync(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    """Wrap the `send` of a library's synchronous client."""

    class Stream(library.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, chunks: Iterator[bytes]) -> None:
            self._chunks = chunks

        def __iter__(self) -> Iterator[bytes]:
            yield from self._chunks

        def close(self) -> None:
            _close(self._chunks)

    @functools.wraps(send)
    def answered(client: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign) -> Foreign:
        answerer = _answerer(request)
        if answerer is None or not _wanted(request.read()):
            return send(client, request, *args, **kwargs)
        started = time.perf_counter()
        for hook in client.event_hooks["request"]:
            hook(request)
        answer = answerer.handle_blocking(request.url.path, request.headers, request.content)
        response = _response(library, request, answer, Stream(answer.chunks), started)
        for hook in client.event_hooks["response"]:
            hook(response)
        if not kwargs.get("stream", False):
            response.read()
        return response

    return answered


def wrap_async(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    """Wrap the `send` of a library's asynchronous client."""

    class Stream(library.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, chunks: AsyncIterator[bytes]) -> None:
            self._chunks = chunks

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._chunks:
                yield chunk

        async def aclose(self) -> None:
            await _aclose(self._chunks)

    @functools.wraps(send)
    async def answered(
        client: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign
    ) -> Foreign:
        answerer = _answerer(request)
        if answerer is None or not _wanted(await request.aread()):
            return await send(client, request, *args, **kwargs)
        started = time.perf_counter()
        for hook in client.event_hooks["request"]:
            await hook(request)
        answer = await answerer.handle(request.url.path, request.headers, request.content)
        response = _response(library, request, answer, Stream(answer.chunks), started)
        for hook in client.event_hooks["response"]:
            await hook(response)
        if not kwargs.get("stream", False):
            await response.aread()
        return response

    return answered


def _answerer(request: Foreign) -> Answerer | None:
    """Return the answerer for a request, if it goes to a model and an answerer takes it."""
    current = ANSWERING.get()
    if current is None or recognise(request.method, request.url.host, request.url.path) is None:
        return None
    takes = current.answerer.takes(request.method, request.url.path)
    return current.answerer if takes else None


def _wanted(body: bytes) -> bool:
    """Say whether the request names a model that is answered here."""
    current = ANSWERING.get()
    return current is None or current.models is None or _model_of(body) in current.models


def _model_of(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Named).model
    except (msgspec.DecodeError, UnicodeError):
        return None


class _Named(msgspec.Struct):
    """The one request field that matters here."""

    model: str | None = None


def _response(
    library: ModuleType,
    request: Foreign,
    answer: Answer | BlockingAnswer,
    stream: Foreign,
    started: float,
) -> Foreign:
    response = library.Response(
        answer.status, headers=list(answer.headers), stream=stream, request=request
    )
    response.elapsed = timedelta(seconds=time.perf_counter() - started)
    return response


def _close(chunks: Iterator[bytes]) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        close()


async def _aclose(chunks: AsyncIterator[bytes]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
