"""A server on 127.0.0.1 that answers with exactly the status, headers and bytes of a test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self


class Reply(NamedTuple):
    """What the server sends; a list of bytes is sent as an event stream."""

    body: bytes | Sequence[bytes]
    status: int = 200
    headers: Mapping[str, str] = {}


class RawServer:
    """Answers the n-th request, given its body, by `reply`."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.seen: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.seen.append(body)
                answer = reply(len(server.seen) - 1, body)
                pieces = [answer.body] if isinstance(answer.body, bytes) else answer.body
                kind = "application/json" if isinstance(answer.body, bytes) else "text/event-stream"
                self.send_response(answer.status)
                for name, value in {"Content-Type": kind, **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Keep the test's output clean: clients leave in the middle of answers."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(message: object, finish: str | None = "stop", **more: object) -> Reply:
    """Return a chat completion with this message."""
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return Reply(json.dumps({"id": "x", "choices": choices, **more}).encode())


def text(content: object) -> Reply:
    """Return a chat completion with this content."""
    return completion({"role": "assistant", "content": content})


def failure(status: int, message: str, **headers: str) -> Reply:
    """Return an error as OpenAI shapes it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps({"error": {"message": message}}).encode(), status, named)


def stream(*events: object) -> Reply:
    """Return an event stream of these objects, ended by [DONE]."""
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return Reply([*lines, b"data: [DONE]\n\n"])
