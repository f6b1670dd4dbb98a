"""A small HTTP server for one page of this package: guards, a token, and limits on connections.

It listens on this machine by default and refuses requests of foreign web pages (`net.py`). With a
token, its address contains it, and nothing is answered without it. Not here: what is answered.
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

from orbiter.train.net import bind, http_address, is_loopback, refuse_web_pages, same_secret

MOST_CONNECTIONS = 64
"""Maximum number of simultaneous connections; further ones are closed at once."""
HTML, JSON, PLAIN = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"


class PageServer(ThreadingHTTPServer):
    """Listens on an address and answers each request in a thread; usable in a `with` block."""

    daemon_threads = True

    def __init__(
        self,
        handler: type[PageHandler],
        host: str,
        port: int,
        *,
        policy: str,
        always_token: bool = False,
    ) -> None:
        """Start to listen; port 0 picks a free one.

        Args:
            handler: Answers one request.
            host: On any but loopback, the address contains a token.
            port: The port to listen on.
            policy: The content security policy of every answer.
            always_token: Use a token on loopback too, so that other users of this machine are shut
                out.

        Raises:
            ConfigError: the port does not exist or is in use, or the host is not on this machine.
        """
        self.host, self.policy = host, policy
        self.guarded = is_loopback(host)
        self.token = secrets.token_urlsafe(16) if always_token or not self.guarded else ""
        listener = bind(host, port)
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        # `bind_and_activate=False` creates a socket nevertheless.
        self.socket.close()  # the one made by socketserver, without the checks of `bind`
        self.socket = listener
        self.server_activate()
        self._slots = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def run(self, on_ready: Callable[[str], object] | None = None) -> None:
        """Answer until Ctrl-C, then close; `on_ready` receives the address at the beginning."""
        with self:
            if on_ready is not None:
                on_ready(self.url)
            try:
                self.serve_forever()
            except KeyboardInterrupt:
                return

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


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request to a `PageServer`."""

    server_version, sys_version = "orbiter-train", ""
    timeout = 30
    server: PageServer

    def refused(self) -> bool:
        """Answer a request that a foreign web page may have sent; return whether it was one."""
        if not self.server.guarded:
            return False
        # http.server decodes headers as latin-1, so this gives the bytes that were sent.
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in self.headers.items()]
        refusal = refuse_web_pages(headers)
        if refusal is not None:
            self.send(refusal.status, PLAIN, f"{refusal.message}\n".encode())
        return refusal is not None

    def path_after_token(self) -> str | None:
        """Return the path below the page's address, or None if it is not below it."""
        start, _, path = self.path.removeprefix("/").partition("/")
        if not self.server.token:
            return self.path.removeprefix("/") if self.path.startswith("/") else None
        # Without the slash at the end, relative links of the page would point above the token.
        is_below = self.path.startswith(f"/{start}/") and same_secret(start, self.server.token)
        return path if is_below else None

    def send(self, status: int, kind: str, body: bytes, **further: str) -> None:
        """Send an answer with the headers that keep a browser from doing anything else with it."""
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.server.policy + "; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in {**headers, **further}.items():
            self.send_header(name, value)
        self.end_headers()
        # The answer to HEAD has the headers of GET, its length included, but no body.
        if self.command != "HEAD":
            self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a terminal that shows a run does not need a line per request."""
