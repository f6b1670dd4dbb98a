"""Wrap requests at `Session.send`, which every prepared request passes through.

A redirect is followed inside `send`, so only the outermost call counts. A streamed response is
captured as its bytes are read from `Response.raw`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import ModuleType
from urllib.parse import urlsplit

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

_INSIDE: ContextVar[bool] = ContextVar("orbiter_requests_inside", default=False)
"""Whether the running code is inside a captured `send`."""
_ANSWERER: ContextVar[Answerer | None] = ContextVar("orbiter_requests_answerer", default=None)
"""The answerer of the request that is being sent."""


def wrap(library: ModuleType) -> None:
    """Wrap the sessions of requests."""
    session = library.Session
    adapter = _adapter(library)
    get_adapter = session.get_adapter

    @functools.wraps(get_adapter)
    def adapter_here(client: Foreign, *args: Foreign, **kwargs: Foreign) -> Foreign:
        answerer = _ANSWERER.get()
        # The adapter is what opens connections; everything before it works as usual.
        return get_adapter(client, *args, **kwargs) if answerer is None else adapter(answerer)

    session.get_adapter = adapter_here
    # Capture is outermost: it sees a call the same way, whatever answers it.
    session.send = _captured(_answered(session.send))


def _captured(send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    @functools.wraps(send)
    def captured(client: Foreign, request: Foreign, **kwargs: Foreign) -> Foreign:
        url = urlsplit(request.url or "")
        host = url.hostname or ""
        recognised = (
            # A redirect calls `send` again from inside.
            None if _INSIDE.get() else recognised_here(request.method or "", host, url.path)
        )
        if recognised is None:
            return send(client, request, **kwargs)
        exchange = begin(
            recognised,
            f"{request.method} {host}{url.path}",
            _body_of(request),
            raw_headers([(str(name), _text(value)) for name, value in request.headers.items()]),
            _text(request.headers.get("content-encoding", "")),
        )
        token = _INSIDE.set(True)
        try:
            response = send(client, request, **kwargs)
        except BaseException as error:
            exchange.close(describe_error(error))
            raise
        finally:
            _INSIDE.reset(token)
        exchange.answered(response.status_code, raw_headers(list(response.headers.items())))
        # requests reads the body inside send unless the caller streams.
        if response._content_consumed:
            exchange.feed(response.content, decoded=True)
            exchange.close()
        else:
            response.raw = _Raw(response.raw, exchange)
        return response

    return captured


def _answered(send: Callable[..., Foreign]) -> Callable[..., Foreign]:
    @functools.wraps(send)
    def answered(client: Foreign, request: Foreign, **kwargs: Foreign) -> Foreign:
        url = urlsplit(request.url or "")
        answerer = answerer_of(request.method or "", url.hostname or "", url.path)
        if answerer is None or not is_answered(_body_of(request)):
            return send(client, request, **kwargs)
        token = _ANSWERER.set(answerer)
        try:
            return send(client, request, **kwargs)
        finally:
            _ANSWERER.reset(token)

    return answered


def _body_of(request: Foreign) -> bytes:
    """Return a prepared request's body; one that can be read only once is replaced by its bytes."""
    body = request.body
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if not isinstance(body, bytes | bytearray):
        read = getattr(body, "read", None)
        pieces = [read()] if read is not None else list(body)
        body = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
        request.body = body
        # A body of known length is sent with Content-Length instead of in chunks.
        request.headers.pop("Transfer-Encoding", None)
        request.headers["Content-Length"] = str(len(body))
    return bytes(body)


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _Raw:
    """A response's `raw` that copies what is read from it to an exchange."""

    def __init__(self, raw: Foreign, exchange: Exchange) -> None:
        self._raw, self._exchange = raw, exchange

    def __getattr__(self, name: str) -> Foreign:
        return getattr(self._raw, name)

    def stream(self, *args: Foreign, **kwargs: Foreign) -> Iterator[bytes]:
        """Yield the body in pieces."""
        decode = args[1] if len(args) > 1 else kwargs.get("decode_content")
        return self._passed(self._raw.stream(*args, **kwargs), self._decodes(decode))

    def read_chunked(self, *args: Foreign, **kwargs: Foreign) -> Iterator[bytes]:
        """Yield the chunks of the transfer encoding."""
        decode = args[1] if len(args) > 1 else kwargs.get("decode_content")
        return self._passed(self._raw.read_chunked(*args, **kwargs), self._decodes(decode))

    def __iter__(self) -> Iterator[bytes]:
        return self._passed(iter(self._raw), self._decodes(None))

    def read(self, amt: int | None = None, *args: Foreign, **kwargs: Foreign) -> bytes:
        """Read some bytes, or all that are left."""
        return self._taken(self._raw.read, amt, *args, **kwargs)

    def read1(self, amt: int | None = None, *args: Foreign, **kwargs: Foreign) -> bytes:
        """Read the bytes that have arrived."""
        return self._taken(self._raw.read1, amt, *args, **kwargs)

    def close(self) -> None:
        """Close the connection."""
        self._exchange.close(LEFT)
        self._raw.close()

    def release_conn(self) -> None:
        """Return the connection to its pool."""
        self._exchange.close(LEFT)
        self._raw.release_conn()

    def _decodes(self, asked: object) -> bool:
        # urllib3's own rule: the argument of a call wins over the response's setting.
        return bool(getattr(self._raw, "decode_content", False) if asked is None else asked)

    def _passed(self, pieces: Iterator[bytes], decoded: bool) -> Iterator[bytes]:
        try:
            for piece in pieces:
                self._exchange.feed(piece, decoded=decoded)
                yield piece
        except Exception as error:
            self._exchange.close(describe_error(error))
            raise
        self._exchange.close()

    def _taken(
        self,
        read: Callable[..., bytes],
        amt: int | None,
        decode_content: bool | None = None,
        *args: Foreign,
        **kwargs: Foreign,
    ) -> bytes:
        try:
            piece = read(amt, decode_content, *args, **kwargs)
        except Exception as error:
            self._exchange.close(describe_error(error))
            raise
        self._exchange.feed(piece, decoded=self._decodes(decode_content))
        # Reading nothing although something was asked for is the end of the body.
        if amt is None or (not piece and amt):
            self._exchange.close()
        return piece


def _adapter(library: ModuleType) -> Callable[[Answerer], Foreign]:
    """Return a transport adapter class that answers requests in this process."""

    class Adapter(library.adapters.BaseAdapter):  # type: ignore[misc, name-defined]
        def __init__(self, answerer: Answerer) -> None:
            super().__init__()
            self._answerer = answerer

        def send(self, request: Foreign, **_: Foreign) -> Foreign:
            headers = {str(name): _text(value) for name, value in request.headers.items()}
            path = urlsplit(request.url).path
            answer = self._answerer.handle_blocking(path, _Headers(headers), _body_of(request))
            raw = _InProcessResponse(answer.status, dict(answer.headers), answer.chunks)
            # The library's own adapter builds the response, so cookies and encodings work as
            # usual.
            return library.adapters.HTTPAdapter().build_response(request, raw)

        def close(self) -> None:
            pass

    return Adapter


class _Headers(dict[str, str]):
    """Request headers, looked up without regard to case."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__({name.lower(): value for name, value in headers.items()})

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Foreign = None) -> Foreign:
        """Return a header's value."""
        return super().get(name.lower(), default)


class _InProcessResponse:
    """An answer of this process in the form of urllib3's response, whose pieces stay pieces."""

    version = 11
    decode_content = False
    _original_response = None

    def __init__(self, status: int, headers: dict[str, str], chunks: Iterator[bytes]) -> None:
        self.status, self.headers, self.reason = status, headers, None
        self._chunks, self._rest = chunks, b""
        self.closed = False

    def stream(self, *_: Foreign, **__: Foreign) -> Iterator[bytes]:
        """Yield the body as it arrives."""
        if self._rest:
            yield self._rest
            self._rest = b""
        yield from self._chunks
        self.closed = True

    def __iter__(self) -> Iterator[bytes]:
        return self.stream()

    def read(self, amt: int | None = None, *_: Foreign, **__: Foreign) -> bytes:
        """Read some bytes, or all that are left."""
        while amt is None or len(self._rest) < amt:
            # A short read would look like the end, so chunks are collected up to the size asked
            # for.
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._rest += chunk
        piece = self._rest if amt is None else self._rest[:amt]
        self._rest = self._rest[len(piece) :]
        return piece

    read1 = read
    read_chunked = stream

    def close(self) -> None:
        """Stop the answer."""
        self.closed = True
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()

    def release_conn(self) -> None:
        """Do nothing: there is no connection."""
