"""`orbiter-train convert`: convert a file to another format, or only check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.cli.items.data import check
from orbiter.train.cli.options import DataFile
from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.progress import working

convert_app = typer.Typer(rich_markup_mode=None)


@convert_app.command()
def convert(
    source: DataFile,
    target: Annotated[
        Path | None, typer.Argument(help="The file to write; not needed with --check.")
    ] = None,
    *,
    from_format: Annotated[
        str | None, typer.Option("--from", help="Format of the source; detected by default.")
    ] = None,
    to_format: Annotated[
        str | None, typer.Option("--to", help="Format to write; by default from the suffix.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out invalid records and report them.")
    ] = False,
    only_check: Annotated[
        bool, typer.Option("--check", help="Read everything, report problems, write nothing.")
    ] = False,
    redact: Annotated[
        bool,
        typer.Option(
            help="Mask secrets, e-mail addresses and home paths in coding agents' sessions."
        ),
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Convert a file to another format, and report what the new format cannot store."""
    from orbiter.train.formats.registry import convert as convert_file

    if only_check:
        # Ends the process itself, with its own exit code.
        check(source, format=from_format, as_json=as_json)
    if target is None:
        raise typer.BadParameter("name the file to write, or give --check")
    output = Output(as_json=as_json)
    with working(f"converting {source}") as count:
        report = convert_file(
            source,
            target,
            from_format=from_format,
            to_format=to_format,
            on_error="skip" if skip_bad else "raise",
            redact=redact,
            on_count=count,
        )
    output.say(str(report))
    output.result(
        {
            "from": report.source,
            "to": report.target,
            "written": report.export.written,
            "left_out": dict(report.export.left_out),
            "left_out_details": list(report.export.details),
            "skipped": [skipped._asdict() for skipped in report.skipped],
            "notes": list(report.notes),
            "out": str(target),
        }
    )
