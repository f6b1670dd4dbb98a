"""Decode server-sent events from the bytes of a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orbiter.train.chat.reply import Unreadable, decode

_FIELD = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(?::|(?:data|event|id|retry):)")


def is_event_stream(head: bytes) -> bool:
    """Return whether a body begins like an event stream, whatever its content type says."""
    return _FIELD.match(head) is not None


def events(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each event.

    `[DONE]`, comments and an unfinished last event are skipped. So are keep-alives that a server
    sends as data: an empty text, a bare word such as `ping`, or JSON that is not an object.

    Raises:
        Unreadable: a complete event begins like a JSON object but is not valid JSON.
    """
    data: list[bytes] = []
    # The protocol defines only these three line ends; `splitlines` accepts more.
    for line in re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf")):
        # Several data lines form one event, joined by line ends.
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line.strip() and data:
            yield from _event(b"\n".join(data))
            data = []
    if data:
        # A server may omit the blank line after its last event; an interrupted stream has no end.
        try:
            yield from _event(b"\n".join(data))
        except Unreadable:
            return


def _event(data: bytes) -> Iterator[dict[str, Any]]:
    # Keep-alives are not JSON objects.
    if not data.startswith(b"{"):
        return
    value = decode(data)
    if isinstance(value, dict):
        yield value
