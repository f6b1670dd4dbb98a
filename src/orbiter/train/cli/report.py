"""`orbiter-train report`: write a run's page once, or serve it live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.cli.options import RUNS, Host, read_items
from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.progress import working

report_app = typer.Typer(rich_markup_mode=None)


@report_app.command()
def report(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A run's folder, by default the latest below runs/; or a file of captured traces.",
            metavar="[FOLDER|TRACES]",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page; by default report.html in the run's folder."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page and follow the run.")
    ] = False,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="With --live; 0 picks a free one.")] = 7868,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's page as one self-contained file, or follow a run while it trains.

    A file of traces gives a page with its episodes, turn by turn.
    """
    from orbiter.train.report import serve_live, write_report, write_traces

    output = Output(as_json=as_json)
    run = folder or _latest()
    if run.is_file():
        if live:
            raise ConfigError(f"--live follows a run's folder, and {run} is a file")
        items = read_items(run)
        with working(f"drawing {run}"):
            page = write_traces(run, items, out)
        output.say(f"wrote {page}")
        output.result({"report": str(page)})
        return
    if not live:
        with working(f"drawing {run}"):
            page = write_report(run, out)
        output.say(f"wrote {page}")
        output.result({"report": str(page)})
        return

    def ready(address: str) -> None:
        output.say(f"{run} at {address} (Ctrl-C ends it)")
        output.result({"address": address})

    serve_live(run, host, port, on_ready=ready)


def _latest() -> Path:
    """Return the run that was started last.

    Raises:
        StorageError: there are no runs.
    """
    # By when it was started: that file is written once, at the beginning.
    runs = sorted(RUNS.glob("**/run.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise StorageError(f"there are no runs in {RUNS}; name a run's folder")
    return runs[-1].parent
