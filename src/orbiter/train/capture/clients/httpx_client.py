"""Wrap httpx and httpx2 at the clients' `send`, which every request passes through."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from types import ModuleType

from orbiter.train.capture.clients.shared import (
    LEFT,
    Foreign,
    answerer_of,
    begin,
    describe_error,
    is_answered,
    recognised_here,
)
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.in_process import Answerer, BlockingAnswer, HttpAnswer
from orbiter.train.capture.wire import Recognised


def wrap(library: ModuleType) -> None:
    """Wrap the clients of httpx or httpx2."""
    # Capture is outermost: it sees a call the same way, whatever answers it.
    answered, answered_async = library.Client.send, library.AsyncClient.send
    library.Client.send = _captured(library, _answered(library, answered))
    library.AsyncClient.send = _captured_async(library, _answered_async(library, answered_async))


# Capture.


def _captured(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    class Recorded(_CopyingStream, library.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            try:
                for chunk in self._stream:
                    self._exchange.feed(chunk)
                    yield chunk
            except Exception as error:
                self._exchange.close(describe_error(error))
                raise
            self._exchange.close()

        def close(self) -> None:
            self._exchange.close(LEFT)
            self._stream.close()

    @functools.wraps(send)
    def captured(client: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign) -> Foreign:
        recognised = _recognised(request)
        if recognised is None:
            return send(client, request, *args, **kwargs)
        # Reading keeps the body in the request, so it can still be sent.
        exchange = _begin(recognised, request, request.read())
        try:
            response = send(client, request, *args, **kwargs)
        except BaseException as error:
            exchange.close(describe_error(error))
            raise
        return _carried(exchange, response, Recorded)

    return captured


def _captured_async(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    class RecordedAsync(_CopyingStream, library.AsyncByteStream):  # type: ignore[misc, name-defined]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for chunk in self._stream:
                    self._exchange.feed(chunk)
                    yield chunk
            except Exception as error:
                self._exchange.close(describe_error(error))
                raise
            self._exchange.close()

        async def aclose(self) -> None:
            self._exchange.close(LEFT)
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
            exchange.close(describe_error(error))
            raise
        return _carried(exchange, response, RecordedAsync)

    return captured


class _CopyingStream:
    """A response stream that copies what passes through it to an exchange."""

    def __init__(self, stream: Foreign, exchange: Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    @property
    def elapsed(self) -> Foreign:
        """Return the elapsed time, which the response reads from its stream."""
        return self._stream.elapsed


def _recognised(request: Foreign) -> Recognised | None:
    """Return the API of a request made inside an episode; None if it is not to be captured."""
    return recognised_here(request.method, request.url.host, request.url.path)


def _begin(recognised: Recognised, request: Foreign, body: bytes) -> Exchange:
    return begin(
        recognised,
        f"{request.method} {request.url.host}{request.url.path}",
        body,
        request.headers.raw,
        request.headers.get("content-encoding", ""),
    )


def _carried(
    exchange: Exchange, response: Foreign, stream: Callable[[Foreign, Exchange], Foreign]
) -> Foreign:
    """Pass the whole response to the exchange, or attach the exchange to the stream."""
    exchange.answered(response.status_code, response.headers.raw)
    # The body is there already, for example because a hook has read it.
    if response.is_stream_consumed or response.is_closed:
        exchange.feed(response.content, decoded=True)
        exchange.close()
        return response
    response.stream = stream(response.stream, exchange)
    return response


# Answers in this process. The client's event hooks run; its timeouts do not.


def _answered(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    class SyncChunks(library.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, chunks: Iterator[bytes]) -> None:
            self._chunks = chunks

        def __iter__(self) -> Iterator[bytes]:
            yield from self._chunks

        def close(self) -> None:
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()

    @functools.wraps(send)
    def answered(client: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign) -> Foreign:
        answerer = _answerer(request)
        if answerer is None or not is_answered(request.read()):
            return send(client, request, *args, **kwargs)
        # Hooks may add headers or refuse the request, so they run before the answer.
        started = time.perf_counter()
        for hook in client.event_hooks["request"]:
            hook(request)
        answer = answerer.handle_blocking(request.url.path, request.headers, request.content)
        response = _response(library, request, answer, SyncChunks(answer.chunks), started)
        for hook in client.event_hooks["response"]:
            hook(response)
        # The client reads the body inside send unless the caller streams.
        if not kwargs.get("stream", False):
            response.read()
        return response

    return answered


def _answered_async(library: ModuleType, send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    class AsyncChunks(library.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, chunks: AsyncIterator[bytes]) -> None:
            self._chunks = chunks

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._chunks:
                yield chunk

        async def aclose(self) -> None:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()

    @functools.wraps(send)
    async def answered(
        client: Foreign, request: Foreign, *args: Foreign, **kwargs: Foreign
    ) -> Foreign:
        answerer = _answerer(request)
        if answerer is None or not is_answered(await request.aread()):
            return await send(client, request, *args, **kwargs)
        started = time.perf_counter()
        for hook in client.event_hooks["request"]:
            await hook(request)
        answer = await answerer.handle(request.url.path, request.headers, request.content)
        response = _response(library, request, answer, AsyncChunks(answer.chunks), started)
        for hook in client.event_hooks["response"]:
            await hook(response)
        if not kwargs.get("stream", False):
            await response.aread()
        return response

    return answered


def _answerer(request: Foreign) -> Answerer | None:
    return answerer_of(request.method, request.url.host, request.url.path)


def _response(
    library: ModuleType,
    request: Foreign,
    answer: HttpAnswer | BlockingAnswer,
    stream: Foreign,
    started: float,
) -> Foreign:
    response = library.Response(
        answer.status, headers=list(answer.headers), stream=stream, request=request
    )
    response.elapsed = timedelta(seconds=time.perf_counter() - started)
    return response
