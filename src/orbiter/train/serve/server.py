"""Serve a trained policy behind an OpenAI-compatible endpoint.

    async with PolicyServer("runs/model", port=8000) as server:
        print(server.url)

Routes are in `app.py`. For TLS, several models or several machines, put a proxy in front.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from orbiter.train.errors import StateError, require
from orbiter.train.http_server import make_server
from orbiter.train.net import bind, check_port, http_address, is_loopback
from orbiter.train.serve.terms import Terms

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy

CLOSING_SECONDS = 5
"""How long open connections may take to end when the server closes."""


class PolicyServer:
    """One model under one address. Open it as an async context manager, or `run()` it."""

    def __init__(
        self,
        model: str | os.PathLike[str] | Policy,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        name: str | None = None,
        token: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_rows: int = 32,
        max_waiting: int = 1024,
        max_tokens: int = 1024,
        return_token_ids: bool = False,
        seed: int = 0,
    ) -> None:
        """Check the settings; the model is loaded when the server opens.

        Args:
            model: "smollm2-135m", "tiny", a folder, a name on the hub; or a policy in this process
                (`await trainer.policy()`), whose updates later answers follow.
            host: Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for everybody.
            port: 0 takes a free one.
            name: The model's name for clients; by default the folder's or the model's own name.
            token: The API key that clients must send. If other machines can reach the host and none
                is given, one is generated; see `token`.
            dtype: Arithmetic of the products: "float32", "bfloat16", or "auto" for the faster one
                on this machine.
            device: "cpu", "cuda", "mps", or "auto".
            max_rows: Answers drawn at the same time at most; more need more memory.
            max_waiting: The maximum number of waiting requests; a further one gets a 429.
            max_tokens: The longest answer if the request sets no limit.
            return_token_ids: Send token ids and log probabilities with every chat completion: for
                capturing agents whose requests you cannot change.
            seed: Determines the answers to requests without a seed, by their order.
        """
        check_port(port)
        if token is None and not is_loopback(host):
            # A server that others can reach is never open by accident.
            token = secrets.token_urlsafe(24)
        self._terms = Terms(
            name=name or _name(model),
            token=token,
            max_rows=max_rows,
            max_waiting=max_waiting,
            max_tokens=max_tokens,
            return_token_ids=return_token_ids,
            seed=seed,
        )
        self._model, self._dtype, self._device = model, dtype, device
        self._host, self._port = host, port
        self._closing: AsyncExitStack | None = None

    @property
    def name(self) -> str:
        """The model's name for clients."""
        return self._terms.name

    @property
    def token(self) -> str | None:
        """The token that clients must send; None if only this machine can reach the server."""
        return self._terms.token

    @property
    def url(self) -> str:
        """The address for clients, as their `base_url`.

        Raises:
            StateError: port 0 was asked for, and the server is not open.
        """
        if not self._port:
            raise StateError("the port is chosen when the server opens: enter it first")
        return f"{http_address(self._host, self._port)}/v1"

    async def __aenter__(self) -> Self:
        """Load the model and start answering.

        Raises:
            ConfigError: the address cannot be used.
            StorageError: the model cannot be loaded.
            MissingExtraError: starlette, uvicorn or torch is not installed.
        """
        async with AsyncExitStack() as stack:
            await self._open(stack, signals=False)
            self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop answering; requests that still wait get an error."""
        if self._closing is not None:
            await self._closing.aclose()
            self._closing = None

    def run(self, on_ready: Callable[[PolicyServer], object] | None = None) -> None:
        """Answer until Ctrl-C or SIGTERM; `on_ready` is called when the server is ready."""
        with contextlib.suppress(KeyboardInterrupt):
            # uvicorn handles the signal first; the KeyboardInterrupt only ends asyncio.run.
            asyncio.run(self._run(on_ready))

    async def _run(self, on_ready: Callable[[PolicyServer], object] | None) -> None:
        async with AsyncExitStack() as stack:
            serving = await self._open(stack, signals=True)
            if on_ready is not None:
                on_ready(self)
            # Shielded, so that a cancellation ends through the stack, which stops the server in
            # order.
            await asyncio.shield(serving)

    async def _open(self, stack: AsyncExitStack, *, signals: bool) -> asyncio.Task[None]:
        """Bind the address, load the model, and listen; the stack undoes each step."""
        require("starlette", extra="serve")
        require("torch", extra="train")
        from orbiter.train.engine.thread import work
        from orbiter.train.serve.answering import Answering
        from orbiter.train.serve.app import Endpoint
        from orbiter.train.serve.batching import Batcher

        # Before the model is loaded, so that a port in use shows within milliseconds.
        listener = stack.enter_context(bind(self._host, self._port))
        policy = await work(_load, self._model, self._dtype, self._device)
        batcher = Batcher(
            policy, max_rows=self._terms.max_rows, max_waiting=self._terms.max_waiting
        )
        await stack.enter_async_context(batcher)
        answering = Answering(policy, batcher)
        stack.callback(answering.close)
        app = Endpoint(answering, self._terms).app()
        server = make_server(app, extra="serve", closing_seconds=CLOSING_SECONDS)
        if not signals:
            # In a program, signals belong to its author.
            server.capture_signals = contextlib.nullcontext
        # The real port, if 0 was asked for.
        self._port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        # Pushed last, so undone first: no request arrives while the decode loop closes.
        stack.push_async_callback(_stop, server, serving)
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.001)
        return serving


def run_server(
    model: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    token: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_rows: int = 32,
    max_waiting: int = 1024,
    max_tokens: int = 1024,
    return_token_ids: bool = False,
    seed: int = 0,
    on_ready: Callable[[PolicyServer], object] | None = None,
) -> None:
    """Serve a model until Ctrl-C or SIGTERM: this is `orbiter-train serve MODEL_DIR`."""
    server = PolicyServer(
        model,
        host,
        port,
        name=name,
        token=token,
        dtype=dtype,
        device=device,
        max_rows=max_rows,
        max_waiting=max_waiting,
        max_tokens=max_tokens,
        return_token_ids=return_token_ids,
        seed=seed,
    )
    server.run(on_ready)


def _load(model: str | os.PathLike[str] | Policy, dtype: str, device: str) -> Policy:
    """Load the model, unless it is a policy already."""
    from orbiter.train.engine.models.load import load_model
    from orbiter.train.engine.policy import make_policy

    if not isinstance(model, (str, os.PathLike)):
        return model
    loaded = load_model(model, device=device)
    policy = make_policy(loaded.model, loaded.tokenizer, dtype=dtype, device=device)
    # Nothing is trained here, so no gradients are needed.
    policy.model.requires_grad_(False)
    return policy


def _name(model: object) -> str:
    """Return a model's name: the one given, or its folder's."""
    if not isinstance(model, (str, os.PathLike)):
        return "policy"
    text = os.fspath(model)
    return Path(text).expanduser().resolve().name if Path(text).is_dir() else text


async def _stop(server: Any, serving: asyncio.Task[None]) -> None:  # noqa: ANN401 - uvicorn's, loaded late
    server.should_exit = True
    await serving
