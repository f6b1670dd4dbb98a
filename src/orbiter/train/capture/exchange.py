"""One request to a model on its way: what goes out, what comes back, until the reply is whole.

Whoever carries the bytes (the patched client, the proxy) feeds them in. The call is kept before the
bytes that end it are handed on, so a reply that the agent has seen whole is never lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from orbiter.train.capture.context import SPEAKER
from orbiter.train.capture.wire import Wire

if TYPE_CHECKING:
    from orbiter.train.capture.episode import Episode

_LONGEST_MARK = 64
_LENGTHS = frozenset((len(b"content-type"), len(b"content-encoding")))


class Exchange:
    """One request and the answer that comes in. One thread at a time."""

    __slots__ = (
        "_chunks", "_clock", "_ending", "_tail", "agent", "body", "done", "episode",
        "first_token_seconds", "seconds", "secrets", "started", "status", "streamed", "unpack",
        "wire",
    )  # fmt: skip

    def __init__(self, episode: Episode, wire: Wire, body: bytes, secrets: tuple[str, ...]) -> None:
        self.episode, self.wire, self.body, self.secrets = episode, wire, body, secrets
        self.agent = SPEAKER.get()
        """Who asks, where a hook knows it."""
        self.started = time.time()
        self.status = 0
        self.streamed = False
        self.seconds = 0.0
        self.first_token_seconds: float | None = None
        self.done = False
        self.unpack: Callable[[bytes], bytes] | None = None
        """Undoes the content encoding, where the bytes come in compressed."""
        self._clock = time.perf_counter()
        self._chunks: list[bytes] = []
        self._tail = b""
        self._ending = b""

    def answered(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Take the head of the response; return the encoding that it is packed in, or ""."""
        self.status = status
        encoding = b""
        for name, value in headers:
            if len(name) in _LENGTHS:  # most names need no look
                if name.lower() == b"content-type":
                    self.streamed = value.startswith(b"text/event-stream")
                elif name.lower() == b"content-encoding":
                    encoding = value
        return "" if encoding == b"identity" else encoding.decode("latin-1")

    def feed(self, chunk: bytes) -> None:
        """Take bytes of the response; the call is kept where they end it."""
        if self.done:
            return
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self._clock
        self._chunks.append(chunk)
        if self.streamed and self.unpack is None and self._is_last(chunk):
            self.close()

    def close(self, error: str | None = None) -> None:
        """End the exchange; `error` says why the bytes ended, where they should not have."""
        if self.done:
            return
        self.done = True
        self.seconds = time.perf_counter() - self._clock
        self.episode.ended(self, b"".join(self._chunks), error)

    def _is_last(self, chunk: bytes) -> bool:
        """Say whether the event that ends a stream has come in whole."""
        if self._ending:
            self._ending += chunk
        else:
            window = self._tail + chunk
            self._tail = window[-_LONGEST_MARK:]
            places = [window.find(mark) for mark in self.wire.terminal]
            place = max(places)
            if place < 0:
                return False
            self._ending = window[place:]
        return b"\n\n" in self._ending or b"\r\n\r\n" in self._ending
