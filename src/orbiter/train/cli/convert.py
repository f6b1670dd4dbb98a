"""`orbiter-train convert`: a file of one format into a file of another, or only checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.cli.data import check
from orbiter.train.cli.options import DataFile
from orbiter.train.cli.output import JsonFlag, Output

convert_app = typer.Typer(rich_markup_mode=None)


@convert_app.command()
def convert(
    source: DataFile,
    target: Annotated[
        Path | None, typer.Argument(help="The file to write; none is needed to --check.")
    ] = None,
    *,
    from_format: Annotated[
        str | None, typer.Option("--from", help="The format read; found out unless given.")
    ] = None,
    to_format: Annotated[
        str | None, typer.Option("--to", help="The format written; by the suffix unless given.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out bad records and tell them.")
    ] = False,
    only_check: Annotated[
        bool, typer.Option("--check", help="Read all, tell what is wrong, and write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn a file of one format into another, and say what has no place there."""
    from orbiter.train.formats.registry import convert as convert_file

    if only_check:
        check(source, format=from_format, as_json=as_json)
    if target is None:
        raise typer.BadParameter("name the file to write, or give --check")
    output = Output(as_json=as_json)
    report = convert_file(
        source,
        target,
        from_format=from_format,
        to_format=to_format,
        on_error="skip" if skip_bad else "raise",
    )
    output.say(str(report))
    output.result(
        {
            "from": report.source,
            "to": report.target,
            "written": report.export.written,
            "left_out": dict(report.export.left_out),
            "skipped": [skipped._asdict() for skipped in report.skipped],
            "out": str(target),
        }
    )
