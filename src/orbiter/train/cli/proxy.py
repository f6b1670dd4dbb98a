"""`orbiter-train proxy`: between an agent and its model, capturing every call."""

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
        Path, typer.Option("--out", "-o", help="The journal that calls are captured in.")
    ],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8787,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ORBITER_TRAIN_TOKEN", show_envvar=True, help="What clients must send."
        ),
    ] = None,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX",
            help="What to replace by [redacted] before anything is kept; may be given repeatedly.",
        ),
    ] = None,
) -> None:
    """Stand between an agent and its model, and capture what they say.

    The model's own key is read from ORBITER_TRAIN_UPSTREAM_KEY where clients send a token instead.
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
