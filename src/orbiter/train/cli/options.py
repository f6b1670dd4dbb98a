"""Options shared by several commands, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")
"""The default parent folder of runs."""

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="The settings: a TOML or YAML file.")
]
OverrideWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.NAME=VALUE]...",
        help="Settings that override the file's, such as train.learning_rate=1e-6.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The folder to create.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print the plan, and load no model.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")]
DataFile = Annotated[Path, typer.Argument(help="A file of items in any known format.")]
FormatName = Annotated[
    str | None, typer.Option("--format", help="The file's format; detected by default.")
]
Host = Annotated[str, typer.Option(help="The address to listen on; by default this machine only.")]
