"""Shared by the wrapped HTTP libraries: capture a request to a model, or answer it here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from orbiter.train.capture.context import OPEN
from orbiter.train.capture.episode import CURRENT
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.in_process import ANSWERING, Answerer
from orbiter.train.capture.redact import keys_in
from orbiter.train.capture.wire import Recognised, recognise

Foreign = Any
"""An object of a library that need not be installed."""
LEFT = "closed before the end"
"""The error of a reply that the agent did not read to its end."""


def recognised_here(method: str, host: str, path: str) -> Recognised | None:
    """Return the API of a request from the running code; None if it is not to be captured.

    A model request outside every episode is counted, to explain later why nothing was captured.
    """
    recognised = recognise(method, host, path)
    episode = CURRENT.get()
    if episode is None or episode.over:
        # A poll for an answer is not counted: its first request was.
        if OPEN.blocks and recognised is not None and recognised.retrieves is None:
            OPEN.stray()
        return None
    if recognised is None:
        # To tell the user which addresses were seen if none of them was a model's.
        episode.note_other(f"{method} {host}{path}")
    return recognised


def begin(
    recognised: Recognised,
    address: str,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    encoding: str = "",
) -> Exchange:
    """Return a new exchange of the running code's episode.

    Args:
        recognised: The API of the request.
        address: What messages call the request, as "POST host/path".
        body: The request.
        headers: Its headers, whose keys are removed from its texts.
        encoding: Its content encoding.
    """
    episode = CURRENT.get()
    assert episode is not None
    return episode.begin(recognised, body, keys_in(headers), address=address, encoding=encoding)


def answerer_of(method: str, host: str, path: str) -> Answerer | None:
    """Return the answerer of a request, if it goes to a model and an answerer takes it."""
    current = ANSWERING.get()
    if current is None or recognise(method, host, path) is None:
        return None
    return current.answerer if current.answerer.takes(method, path) else None


def is_answered(body: bytes) -> bool:
    """Return whether a request names a model that is answered here."""
    current = ANSWERING.get()
    # None means all models, as the agent may name whatever its provider has.
    return current is None or current.models is None or _model_of(body) in current.models


def raw_headers(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Return headers as they are on the wire."""
    return [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in headers
    ]


def describe_error(error: BaseException) -> str:
    """Return the text in which an item records the error that ended a call."""
    return f"{type(error).__name__}: {error}"


def _model_of(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Named).model
    except (msgspec.DecodeError, UnicodeError):
        return None


class _Named(msgspec.Struct):
    """The one request field that matters here."""

    model: str | None = None
