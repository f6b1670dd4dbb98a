"""Serve the report page on a local address and follow a run while it is being written.

The server is read-only and answers with the page and its data, never with a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typing_extensions import override

from orbiter.train.errors import TrainError
from orbiter.train.net import bind, http_address, is_loopback, refuse_web_pages, same_secret
from orbiter.train.report.document import Source
from orbiter.train.report.page import policy, render
from orbiter.train.report.write import envelope

MOST_CONNECTIONS = 64
"""Maximum number of simultaneous connections; further ones are closed at once."""
HTML, JSON, PLAIN = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"


def serve_live(
    folder: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 7868,
    *,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Serve the report of the run in `folder` until Ctrl-C, and keep it up to date.

    `on_ready` receives the address once it can be opened; port 0 picks any free one. The server is
    read-only: it answers GET and HEAD for the page and its data, and nothing else in the folder. On
    loopback, requests from foreign web pages are refused (`net.py`). On any other `host` the
    address contains a random token, without which nothing is answered.

    Raises:
        StorageError: there is no run in `folder`.
        ConfigError: the port does not exist or is in use, or the host is not on this machine.
    """
    with LiveServer(folder, host, port) as server:
        if on_ready is not None:
            on_ready(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class LiveServer(ThreadingHTTPServer):
    """The server of `serve_live`; usable in a `with` block."""

    daemon_threads = True

    def __init__(self, folder: str | os.PathLike[str], host: str, port: int) -> None:
        """Start to listen.

        Raises:
            StorageError: there is no run in `folder`.
            ConfigError: the port does not exist or is in use, or the host is not on this machine.
        """
        self.following = Following(Path(folder))
        self.host = host
        self.token = "" if is_loopback(host) else secrets.token_urlsafe(16)
        listener = bind(host, port)
        super().__init__(listener.getsockname()[:2], _Answer, bind_and_activate=False)
        self.socket.close()  # the one made by socketserver, without the checks of `bind`
        self.socket = listener
        self.server_activate()
        self._slots = threading.BoundedSemaphore(MOST_CONNECTIONS)

    @property
    def url(self) -> str:
        """The address of the page."""
        address = http_address(self.host, self.server_address[1])
        return f"{address}/{self.token}/" if self.token else f"{address}/"

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread; close the connection at once if too many are open."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    @override
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then free the connection slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnected; report anything else as usual."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Following:
    """The document of a running job, rebuilt only when a file has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._source = Source(folder)
        self._lock = threading.Lock()  # every request is handled in a separate thread
        self._state: object = None
        self._page, self._data, self._tag = b"", b"", ""

    def page(self) -> bytes:
        """Return the current page."""
        with self._lock:
            self._refresh()
            return self._page

    def data(self) -> tuple[bytes, str]:
        """Return the document, and an identifier of this version."""
        with self._lock:
            self._refresh()
            return self._data, self._tag

    def _refresh(self) -> None:
        state = self._source.state()
        if state != self._state:
            document = envelope([self._source.document()])
            self._page = render(document | {"live": True}, live=True).encode()
            self._data = json.dumps(document | {"live": True}).encode()
            self._tag = f'"{hashlib.blake2b(repr(state).encode(), digest_size=12).hexdigest()}"'
            self._state = state


class _Answer(BaseHTTPRequestHandler):
    """Answers one request."""

    server_version, sys_version = "orbiter-train", ""
    timeout = 30
    server: LiveServer

    def do_GET(self) -> None:
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in self.headers.items()]
        refused = None if self.server.token else refuse_web_pages(headers)
        if refused is not None:
            self._send(refused.status, PLAIN, f"{refused.message}\n".encode())
            return
        path = self._path_after_token()
        try:
            if path == "":
                self._send(200, HTML, self.server.following.page())
            elif path == "data":
                self._send_data()
            else:
                self._send(404, PLAIN, b"There is nothing here.\n")
        except TrainError as error:
            self._send(500, PLAIN, f"{error}\n".encode())

    def _path_after_token(self) -> str | None:
        """Return the path below the page's address, or None if it is not below it."""
        start, _, path = self.path.removeprefix("/").partition("/")
        if not self.server.token:
            return self.path.removeprefix("/") if self.path.startswith("/") else None
        is_below = self.path.startswith(f"/{start}/") and same_secret(start, self.server.token)
        return path if is_below else None

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _send_data(self) -> None:
        data, tag = self.server.following.data()
        if self.headers.get("If-None-Match") == tag:
            self._send(304, JSON, b"", ETag=tag)
        else:
            self._send(200, JSON, data, ETag=tag)

    def _send(self, status: int, kind: str, body: bytes, **further: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy(live=True) + "; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in {**headers, **further}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a terminal that shows a run does not need a line per request."""
