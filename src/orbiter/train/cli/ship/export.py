"""`orbiter-train export`: write a model as one file for llama.cpp and Ollama."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.cli.ship.compare import model_in

export_app = typer.Typer(rich_markup_mode=None)


@export_app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="A run's folder, a model, an adapter's folder or a hub name.")
    ],
    *,
    gguf: Annotated[Path, typer.Option("--gguf", help="The file to write; ends in .gguf.")],
    type: Annotated[
        Literal["f16", "q8_0"],
        typer.Option(help="16-bit weights, or 8-bit ones in half the size."),
    ] = "f16",
    as_json: JsonFlag = False,
) -> None:
    """Write a model as a GGUF file, with its tokenizer and chat template.

    Llama, SmolLM, Qwen 2, Qwen 2.5 and Qwen 3 can be written; adapters are merged into their base.
    """
    from orbiter.train.engine.models.gguf_export import export_gguf

    output = Output(as_json=as_json)
    exported = export_gguf(model_in(model), gguf, type=type)
    size = exported.bytes / 2**20
    output.say(
        f"wrote {exported.path}: {exported.architecture}, {exported.type}, "
        f"{exported.tensors} tensors, {size:,.1f} MiB"
    )
    output.say(f"try it    llama-cli -m {exported.path}, or with Ollama: see docs/howto/gguf.md")
    output.result(asdict(exported) | {"path": str(exported.path)})
