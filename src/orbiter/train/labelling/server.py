"""Serves the labelling page on this machine, and writes down what is said on it.

The address contains a token, foreign web pages are refused (`net.py`), and labels are only taken as
JSON, which a page of another site cannot send without being asked first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from orbiter.train.errors import DataError, TrainError
from orbiter.train.labelling.session import LabelSession, OutdatedError, ShownUnit
from orbiter.train.page_server import HTML, JSON, PLAIN, PageHandler, PageServer
from orbiter.train.report.page import PageParts, in_strict_mode, page_file

LARGEST_BODY = 64 << 10
"""Bytes of a label with its note."""


def serve_labels(
    session: LabelSession,
    host: str = "127.0.0.1",
    port: int = 7869,
    *,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Serve the page until Ctrl-C; `on_ready` gets the address. Port 0 picks any free one.

    Raises:
        ConfigError: the port does not exist or is in use, or the host is not on this machine.
    """
    LabelServer(session, host, port).run(on_ready)


class LabelServer(PageServer):
    """The server of `serve_labels`; usable in a `with` block."""

    def __init__(self, session: LabelSession, host: str = "127.0.0.1", port: int = 0) -> None:
        """Start to listen.

        Raises:
            ConfigError: the port does not exist or is in use, or the host is not on this machine.
        """
        self.session = session
        super().__init__(
            _LabelHandler, host, port, policy=parts().policy(live=True), always_token=True
        )


@cache
def parts() -> PageParts:
    """Return the constant parts of the page, read once."""
    folder = files(__package__) / "page"
    script = (folder / "label.js").read_text("utf-8")
    return PageParts(
        page_file("page.html"),
        (folder / "label.css").read_text("utf-8"),
        in_strict_mode(page_file("dom.js"), script),
    )


def described(session: LabelSession, shown: ShownUnit | None) -> dict[str, Any]:
    """Return a unit as the page gets it: nothing says which model an answer is from."""
    document: dict[str, Any] = {
        "kind": session.kind,
        "scale": session.scale,
        "rater": session.rater,
        "done": session.done,
        "total": session.total,
        "place": session.total,
    }
    if shown is None:
        return document
    document |= {
        "place": shown.place,
        "version": shown.version,
        "task": shown.unit.task,
        "answers": [shown.unit.answers[place] for place in shown.order],
    }
    if shown.given is not None:
        document["given"] = {"value": _value_on_page(shown), "note": shown.given.note}
    return document


def _value_on_page(shown: ShownUnit) -> object:
    """Return the value of a judgement as the page sent it."""
    given = shown.given
    if given is None or given.value is None:
        return None
    if given.kind == "right":
        return given.value == 1
    if given.kind == "rating":
        return int(given.value)
    if given.value == 0.5:
        return "equal"
    return ("left", "right")[shown.order.index(0 if given.value == 1 else 1)]


class _LabelHandler(PageHandler):
    """Answers one request."""

    server: LabelServer

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        if self.refused():
            return
        session, path = self.server.session, self.path_after_token()
        if path == "":
            first = session.first_open
            shown = session.shown(first) if first < session.total else None
            page = parts().render(described(session, shown), live=True)
            self.send(200, HTML, page.encode())
        elif path is not None and path.startswith("unit/"):
            self._send_unit(path.removeprefix("unit/"))
        else:
            self.send(404, PLAIN, b"There is nothing here.\n")

    do_HEAD = do_GET  # noqa: N815 - as above

    def do_POST(self) -> None:  # noqa: N802 - as above
        if self.refused():
            return
        if self.path_after_token() != "label":
            self.send(404, PLAIN, b"There is nothing here.\n")
            return
        session = self.server.session
        try:
            label = self._body()
            # `shown` checks the place, which comes from the page.
            place = session.shown(label.get("place")).place
            session.label(place, label)
        # The page gets the unit as it is now, with the label that the other tab has given.
        except OutdatedError:
            self._send_unit(str(label["place"]), status=409)
        except DataError as error:
            self.send(400, PLAIN, f"{error}\n".encode())
        except TrainError as error:
            self.send(500, PLAIN, f"{error}\n".encode())
        else:
            # After the last one, the first that is still open; then the page is finished.
            further = place + 1 if place + 1 < session.total else session.first_open
            self._send_unit(str(further))

    def _send_unit(self, text: str, *, status: int = 200) -> None:
        session = self.server.session
        # int() alone would accept other scripts' digits and texts of any length.
        place = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        try:
            shown = None if place == session.total else session.shown(place)
        except DataError as error:
            self.send(404, PLAIN, f"{error}\n".encode())
            return
        self.send(status, JSON, json.dumps(described(session, shown)).encode())

    def _body(self) -> Mapping[str, Any]:
        """Return the JSON object of the request.

        Raises:
            DataError: it is not one, or is too large.
        """
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        length = self.headers.get("Content-Length", "")
        # A page of another site may send forms without being asked, but no JSON.
        if kind != JSON:
            raise DataError(f"a label must be sent as {JSON}, got {kind or 'no type'}")
        if not (length.isascii() and length.isdigit()) or int(length) > LARGEST_BODY:
            raise DataError(f"a label must have at most {LARGEST_BODY} bytes and say how many")
        try:
            label = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"a label must be JSON: {error}") from error
        if not isinstance(label, dict):
            raise DataError("a label must be a JSON object")
        return label
