"""Write the page as a self-contained file."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from orbiter.train.report.document import FORMAT, Doc, RunFolder
from orbiter.train.report.page import render
from orbiter.train.storage import write_file

REPORT_FILE = "report.html"


def write_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of the run in `folder` to `out` (default: its report.html); return the path.

    A folder with several runs, such as the demo's, gives one page with a section for each.

    Raises:
        StorageError: there is no run in `folder`, a line of it is damaged, or `out` cannot be
            written.
    """
    path = Path(folder) / REPORT_FILE if out is None else Path(out)
    return write_page(path, [RunFolder(Path(folder)).document()])


def write_comparison(
    folder_a: str | os.PathLike[str],
    folder_b: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    comparison: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one page that shows two runs side by side, and return its path.

    `comparison` is the folder of a comparison of their models, which is shown first.

    Raises:
        StorageError: as for `write_report`.
    """
    sources = [RunFolder(Path(folder)) for folder in (folder_a, folder_b)]
    runs = [source.document(share=0.5) for source in sources]
    if comparison is not None:
        runs[1]["comparison"] = RunFolder(Path(comparison)).document()["comparison"]
    return write_page(Path(out), runs)


def envelope(runs: list[Doc]) -> Doc:
    """Return the page document for one or two runs."""
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": runs,
    }


def write_page(path: Path, runs: list[Doc]) -> Path:
    """Write the page of one or two runs' documents; return its path."""
    write_file(path, render(envelope(runs)).encode())
    return path
