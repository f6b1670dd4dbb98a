"""`orbiter-train serve`: serve a model at an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orbiter.train.cli.options import Host
from orbiter.train.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from orbiter.train.serve import PolicyServer

serve_app = typer.Typer(rich_markup_mode=None)


Token = Annotated[
    str | None,
    typer.Option(
        envvar="ORBITER_TRAIN_TOKEN",
        show_envvar=True,
        help="Token that clients must send; generated if other machines can reach the host.",
    ),
]
MaxRows = Annotated[int, typer.Option(help="Maximum answers generated at the same time.")]
MaxWaiting = Annotated[int, typer.Option(help="Maximum requests waiting; further ones get a 429.")]
MaxTokens = Annotated[
    int, typer.Option(help="Maximum length of an answer if the request sets none.")
]
ReturnTokenIds = Annotated[
    bool,
    typer.Option(
        "--return-token-ids",
        help="Send token ids and log probabilities with every answer, requested or not: "
        "for capturing agents for training.",
    ),
]


@serve_app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, smollm2-135m or tiny.")],
    *,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name for clients.")] = None,
    token: Token = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")] = "auto",
    max_rows: MaxRows = 32,
    max_waiting: MaxWaiting = 1024,
    max_tokens: MaxTokens = 1024,
    return_token_ids: ReturnTokenIds = False,
    seed: Annotated[int, typer.Option(help="Seed for requests without one.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Serve a model at an OpenAI-compatible endpoint on this machine.

    Clients use the printed address as their base URL. A request may ask for token ids with
    "return_token_ids": true in its body.
    """
    from orbiter.train.serve import run_server

    output = Output(as_json=as_json)

    def ready(server: PolicyServer) -> None:
        output.say(f"{server.name} answers at {server.url} (Ctrl-C ends it)")
        if server.token is not None:
            output.say(f"token: {server.token}")
        output.result({"url": server.url, "token": server.token, "model": server.name})

    run_server(
        model,
        host=host,
        port=port,
        name=name,
        token=token,
        dtype=dtype,
        device=device,
        max_rows=max_rows,
        max_waiting=max_waiting,
        max_tokens=max_tokens,
        return_token_ids=return_token_ids,
        seed=seed,
        on_ready=ready,
    )
