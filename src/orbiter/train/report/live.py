"""Serve the report page on a local address and follow a run while it is being written.

The server is read-only and answers with the page and its data, never with a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from orbiter.train.errors import TrainError
from orbiter.train.page_server import HTML, JSON, PLAIN, PageHandler, PageServer
from orbiter.train.report.document import RunFolder
from orbiter.train.report.page import policy, render
from orbiter.train.report.write import envelope


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
    LiveServer(folder, host, port).run(on_ready)


class LiveServer(PageServer):
    """The server of `serve_live`; usable in a `with` block."""

    def __init__(self, folder: str | os.PathLike[str], host: str, port: int) -> None:
        """Start to listen.

        Raises:
            StorageError: there is no run in `folder`.
            ConfigError: the port does not exist or is in use, or the host is not on this machine.
        """
        self.following = Following(Path(folder))
        super().__init__(_ReportHandler, host, port, policy=policy(live=True))


class Following:
    """The document of a running job, rebuilt only when a file has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._source = RunFolder(folder)
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
        # Several open pages ask for the same state.
        if state != self._state:
            document = envelope([self._source.document()])
            self._page = render(document | {"live": True}, live=True).encode()
            self._data = json.dumps(document | {"live": True}).encode()
            self._tag = f'"{hashlib.blake2b(repr(state).encode(), digest_size=12).hexdigest()}"'
            self._state = state


class _ReportHandler(PageHandler):
    """Answers one request."""

    server: LiveServer

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        if self.refused():
            return
        path = self.path_after_token()
        try:
            if path == "":
                self.send(200, HTML, self.server.following.page())
            elif path == "data":
                self._send_data()
            else:
                self.send(404, PLAIN, b"There is nothing here.\n")
        except TrainError as error:
            self.send(500, PLAIN, f"{error}\n".encode())

    do_HEAD = do_GET  # noqa: N815 - as above

    def _send_data(self) -> None:
        data, tag = self.server.following.data()
        if self.headers.get("If-None-Match") == tag:
            self.send(304, JSON, b"", ETag=tag)
        else:
            self.send(200, JSON, data, ETag=tag)
