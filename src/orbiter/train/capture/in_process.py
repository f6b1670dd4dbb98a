"""Answer an agent's model calls in this process: its HTTP clients never open a socket.

`transport.answered_by` sets the answerer, and the files in `clients/` ask for it: requests to a
model API, whatever their base URL, go to the answerer, and all others go out as usual. A client's
timeouts do not run, because an answer that is computed here may take longer than a provider's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import NamedTuple, Protocol


class HttpAnswer(Protocol):
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
        """Return whether this request can be answered."""

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Awaitable[HttpAnswer]:
        """Answer a request; works on any event loop."""

    def handle_blocking(self, path: str, headers: Mapping[str, str], body: bytes) -> BlockingAnswer:
        """Answer a request while the calling thread waits; any thread may call."""


class InProcessModels(NamedTuple):
    """An answerer and the models that it answers for."""

    answerer: Answerer
    models: frozenset[str] | None
    """Model names that are answered here; None means all."""


ANSWERING: ContextVar[InProcessModels | None] = ContextVar("orbiter_answering", default=None)
"""The answerer of the running code's model calls; None lets them go to their own server."""
