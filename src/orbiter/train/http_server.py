"""Make an HTTP server for an ASGI app that slow, idle or endless clients cannot block."""

from __future__ import annotations

import asyncio
from typing import Any

from orbiter.train.errors import require

HEAD_SECONDS = 20.0
"""Time for a client to send a request's line and headers, from opening the connection."""
PAUSE_SECONDS = 30.0
"""Longest pause between two pieces of a request's body."""
BODY_SECONDS = 600.0
"""Time for a client to send a whole body."""
LONGEST_HEAD = 64 << 10
"""Largest request line with headers, in bytes."""
MOST_CONNECTIONS = 4096
"""Connections at the same time; a further request is answered with 503."""


def make_server(
    app: object, *, extra: str, lifespan: str = "off", closing_seconds: float | None = None
) -> Any:  # noqa: ANN401 - uvicorn is an optional dependency
    """Return a `uvicorn.Server` for the app, to be run on a socket from `net.bind`.

    Args:
        app: The ASGI application.
        extra: The extra of this package that installs uvicorn, named if it is missing.
        lifespan: "on" if the application handles startup and shutdown.
        closing_seconds: How long open requests may take to end when the server stops; None waits
            for all of them.

    Raises:
        MissingExtraError: uvicorn is not installed.
    """
    uvicorn: Any = require("uvicorn", extra=extra)
    config = uvicorn.Config(
        app,
        http=_guarded_protocol(),
        log_level="warning",
        access_log=False,
        lifespan=lifespan,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        backlog=MOST_CONNECTIONS,
        timeout_graceful_shutdown=closing_seconds,
    )
    return uvicorn.Server(config)


def _guarded_protocol() -> type[Any]:
    """Return uvicorn's HTTP protocol with deadlines for the client.

    Uvicorn itself only limits how long a connection idles between two requests.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class GuardedProtocol(base):  # type: ignore[misc] # the base is chosen at run time
        """One connection, closed if its client does not send a request in time."""

        _deadline: asyncio.TimerHandle | None = None
        _body_began: float | None = None
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as the base
            super().connection_made(transport)
            self._close_in(HEAD_SECONDS)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if not is_answering:  # still in the request's head
                self._head_bytes += len(data)
                if self._head_bytes > LONGEST_HEAD:
                    self.transport.close()
                if self._deadline is None:
                    self._close_in(HEAD_SECONDS)
                return
            self._cancel_deadline()
            self._head_bytes = 0
            if not self.cycle.more_body:
                self._body_began = None
                return
            now = self.loop.time()
            if self._body_began is None:
                self._body_began = now
            self._close_in(min(PAUSE_SECONDS, self._body_began + BODY_SECONDS - now))

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_deadline()
            super().connection_lost(exc)

        def _close_in(self, seconds: float) -> None:
            self._cancel_deadline()
            self._deadline = self.loop.call_later(max(0.0, seconds), self.transport.close)

        def _cancel_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return GuardedProtocol
