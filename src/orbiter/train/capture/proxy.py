"""Run a proxy in front of a model, for agents in other processes and languages.

    base_url = http://127.0.0.1:8787/s/SESSION/v1      for OpenAI's clients
    base_url = http://127.0.0.1:8787/s/SESSION         for Anthropic's

Each session is an episode; the program that runs the agent chooses its name. Requests and responses
pass through unchanged, streams chunk by chunk. The proxy adds these paths to the model's own:

    POST /s/SESSION                {"agent": ..., "task_id": ...}      both optional, before a call
    POST /s/SESSION/reward         {"reward": 1.0, "gamma": 1.0}       ends the episode
    POST /s/SESSION/step_reward    {"reward": 0.5}                     the latest call's

On loopback any program on this machine may use the proxy; anywhere else it requires a token, in the
header `x-orbiter-token` or as the client's API key, which the proxy then replaces by its own key.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from orbiter.train.capture.redact import Redact
from orbiter.train.errors import ConfigError, require
from orbiter.train.http_server import MOST_CONNECTIONS, make_server
from orbiter.train.net import bind, http_address, is_loopback
from orbiter.train.trajectory import TrajectoryDataset

if TYPE_CHECKING:
    from starlette.applications import Starlette

CLOSING_SECONDS = 2.0
"""How long open calls may take to end when the proxy is stopped; then they are cancelled."""


def run_proxy(
    to: str,
    path: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    token: str | None = None,
    api_key: str | None = None,
    redact: Redact = None,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Serve until interrupted; each call is in the journal before its reply is complete.

    Calls that are still open a few seconds after the interrupt are cancelled, and kept as far as
    they came, with an `error`.

    Args:
        to: The model's address, such as "http://127.0.0.1:8000/v1".
        path: The dataset's journal; opened or created, and closed at the end.
        host: Address to listen on; one that is not loopback needs a token.
        port: Port to listen on; 0 picks a free one.
        token: Token that clients must send.
        api_key: The model's key, sent in place of a token that came as the client's key.
        redact: As for `record`.
        on_ready: Called with the proxy's address once it is listening.

    Raises:
        ConfigError: an open address without a token, a malformed address, or a port that does not
            exist or is in use.
        StorageError: the journal is held by another process, or is not a journal.
        MissingExtraError: the extra `capture` is not installed.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"host {host!r} can be reached from other machines: give a token=, or keep 127.0.0.1"
        )
    with bind(host, port) as listener, TrajectoryDataset(path=path) as dataset:
        app = proxy_app(to, dataset, token=token, api_key=api_key, redact=redact)
        listener.listen(MOST_CONNECTIONS)  # clients may connect from here on, and wait
        if on_ready is not None:
            on_ready(http_address(host, listener.getsockname()[1]))
        server = make_server(app, extra="capture", lifespan="on", closing_seconds=CLOSING_SECONDS)
        server.run(sockets=[listener])


def proxy_app(
    to: str,
    dataset: TrajectoryDataset,
    *,
    token: str | None = None,
    api_key: str | None = None,
    redact: Redact = None,
) -> Starlette:
    """Return the proxy as an ASGI application for any ASGI server.

    Raises:
        ConfigError: `to` is not an address.
        MissingExtraError: the extra `capture` is not installed.
    """
    require("starlette", extra="capture")
    require("httpx2", extra="capture")
    from orbiter.train.capture.proxy_app import make_app

    if not to.startswith(("http://", "https://")):
        raise ConfigError(f"to must be an http:// or https:// address, got {to!r}")
    return make_app(to, dataset, token=token, api_key=api_key, redact=redact)
