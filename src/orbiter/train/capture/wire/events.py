"""Server-sent events, read back out of the bytes of a stream."""

from __future__ import annotations

from collections.abc import Iterator

from orbiter.train.chat.reply import Json, Unreadable, decode


def events(body: bytes) -> Iterator[Json]:
    """Yield the JSON of each event; `[DONE]`, comments and an unfinished last event are left out.

    Raises:
        Unreadable: a whole event holds no JSON.
    """
    data: list[bytes] = []
    for line in body.splitlines(keepends=True):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line.strip() and data:
            yield from _event(b"\n".join(data))
            data = []
    if data:
        # A server may leave out the empty line behind its last event; a broken one has no end.
        try:
            yield from _event(b"\n".join(data))
        except Unreadable:
            return


def _event(data: bytes) -> Iterator[Json]:
    if data and data != b"[DONE]":
        yield decode(data)
