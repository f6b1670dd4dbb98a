"""One model request in flight: request and response bytes, until the reply is complete.

Whatever carries the bytes (a patched client, the proxy) feeds them in. The call is stored before
the final bytes are handed on, so a reply that the agent has seen in full is never lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from orbiter.train.capture.context import SPEAKER
from orbiter.train.capture.encoding import Decode, decoder
from orbiter.train.capture.wire import Recognised, Wire
from orbiter.train.capture.wire.events import is_event_stream
from orbiter.train.chat.reply import Unreadable

_LONGEST_MARK = 64
_LENGTHS = frozenset((len(b"content-type"), len(b"content-encoding")))


class Exchange:
    """One request and its incoming answer. Use from one thread at a time."""

    __slots__ = (
        "_chunks", "_clock", "_decode", "_ended", "_ending", "_tail", "address", "agent", "body",
        "certain", "done", "failure", "first_token_seconds", "retrieves", "seconds", "secrets",
        "started", "status", "streamed", "unreadable", "wire",
    )  # fmt: skip

    def __init__(
        self,
        ended: Callable[[Exchange, bytes, str | None], None],
        recognised: Recognised,
        body: bytes,
        secrets: tuple[str, ...],
        address: str = "",
    ) -> None:
        """Start with the request.

        Args:
            ended: Called once with this exchange, the body of the response, and why it ended
                early, if it did.
            recognised: The API of the request.
            body: The request.
            secrets: The keys in its headers.
            address: What messages call the request, as "POST host/path".
        """
        self.body, self.secrets, self.address = body, secrets, address
        self._ended = ended
        self.wire: Wire = recognised.wire
        self.certain = recognised.certain
        self.retrieves = recognised.retrieves
        self.agent = SPEAKER.get()
        """The agent that made the request, if a hook knows it."""
        self.started = time.time()
        self.status = 0
        self.streamed = False
        self.seconds = 0.0
        self.first_token_seconds: float | None = None
        self.done = False
        self.failure: Exception | None = None
        """Why the call could not be captured, although it is done."""
        self.unreadable: str | None = None
        """Why the bytes could not be decoded."""
        self._clock = time.perf_counter()
        self._decode: Decode | None = None
        self._chunks: list[bytes] = []
        self._tail = b""
        self._ending = b""

    def answered(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Receive the status and the headers of the response, as raw bytes."""
        self.status = status
        for name, value in headers:
            if len(name) in _LENGTHS:  # skips most header names cheaply
                if name.lower() == b"content-type":
                    self.streamed = value.lower().startswith(b"text/event-stream")
                elif name.lower() == b"content-encoding":
                    self._decode = decoder(value.decode("latin-1"))

    def feed(self, chunk: bytes, *, decoded: bool = False) -> None:
        """Receive the next bytes of the response; store the call when they complete it.

        Args:
            chunk: The next bytes.
            decoded: Whether the client has already undone the content encoding.
        """
        # Bytes after the last event carry nothing; the call is stored already.
        if self.done:
            return
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self._clock
        if self._decode is not None and not decoded and self.unreadable is None:
            try:
                chunk = self._decode(chunk)
            except Unreadable as problem:
                self.unreadable = str(problem)
        if not chunk or self.unreadable is not None:
            return
        if not self._chunks:
            # The content type may be wrong: the first bytes decide.
            self.streamed = is_event_stream(chunk) or (
                self.streamed and not chunk.lstrip().startswith((b"{", b"["))
            )
        self._chunks.append(chunk)
        if self.streamed and self._is_last(chunk):
            self.close()

    def close(self, error: str | None = None) -> None:
        """End the exchange; `error` says why the bytes ended early."""
        if self.done:
            return
        # Set first, so that an error in `ended` cannot make it run twice.
        self.done = True
        self.seconds = time.perf_counter() - self._clock
        self._ended(self, b"".join(self._chunks), self.unreadable or error)

    def _is_last(self, chunk: bytes) -> bool:
        """Return whether the event that ends the stream has arrived in full."""
        if self._ending:
            self._ending += chunk
        else:
            # A mark may be split between two chunks, so the end of the previous chunk is kept.
            window = self._tail + chunk
            self._tail = window[-_LONGEST_MARK:]
            positions = [window.find(mark) for mark in self.wire.terminal]
            position = max(positions)
            if position < 0:
                return False
            self._ending = window[position:]
        return b"\n\n" in self._ending or b"\r\n\r\n" in self._ending
