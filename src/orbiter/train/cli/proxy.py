"""`orbiter-train proxy`: run a proxy that captures every call between an agent and its model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.cli.options import Host
from orbiter.train.cli.output import Output

proxy_app = typer.Typer(rich_markup_mode=None)


@proxy_app.command()
def proxy(
    *,
    to: Annotated[str, typer.Option(help="The model's address, ending in /v1.", metavar="URL")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The journal for the captured calls.")
    ] = Path("traces.journal"),
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8787,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ORBITER_TRAIN_TOKEN", show_envvar=True, help="Token that clients must send."
        ),
    ] = None,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX",
            help="Text to replace by [redacted] before anything is kept; may be repeated.",
        ),
    ] = None,
) -> None:
    """Run a proxy between an agent and its model, and capture every call.

    If clients send a token instead of the model's key, the key is read from the environment
    variable ORBITER_TRAIN_UPSTREAM_KEY.
    """
    from orbiter.train.capture.proxy import run_proxy

    output = Output()

    def ready(address: str) -> None:
        output.say(f"capturing to {out}; set the agent's base URL to {address}/s/SESSION/v1")

    key = os.environ.get("ORBITER_TRAIN_UPSTREAM_KEY")
    try:
        run_proxy(
            to, out, host=host, port=port, token=token, api_key=key, redact=redact, on_ready=ready
        )
    except KeyboardInterrupt:  # the normal way to end the proxy
        output.say(f"the captured calls are in {out}")
