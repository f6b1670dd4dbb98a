"""Write a command's output: a table on a terminal, plain lines in a pipe, or one JSON object.

Plain lines are used if the output is not a terminal, TERM is dumb, or NO_COLOR is set. With --json
the result is one object on standard output, and all messages go to standard error.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from orbiter.train.progress import is_plain

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]


class Output:
    """Writes a command's messages, tables and result."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        # So that `--json` can be piped into another program.
        self._stream = sys.stderr if as_json else sys.stdout

    def say(self, line: str = "") -> None:
        """Print a line."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows below their column names; long values wrap, nothing is cut off."""
        cells = [[str(cell) for cell in row] for row in rows]
        if is_plain(self._stream):
            for line in _aligned([list(columns), *cells]):
                self.say(line)
            return
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console(file=self._stream)
        longest = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        # The first column holds names: it keeps a third of the width, the others eight characters.
        least = [min(longest[0], max(20, console.width // 3)), *(min(8, n) for n in longest[1:])]
        if sum(least) + 3 * len(least) > console.width:
            self._say_rows(columns, cells)
            return
        drawn = Table(box=box.SIMPLE_HEAD)
        for name, width in zip(columns, least, strict=True):
            drawn.add_column(name, overflow="fold", min_width=width)
        for row in cells:
            drawn.add_row(*map(escape, row))
        console.print(drawn)

    def _say_rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print every row on separate lines, for a terminal too narrow for the table."""
        for row in rows:
            for name, value in zip(columns, row, strict=True):
                self.say(f"{name}: {value}" if name else value)
            self.say()

    def result(self, result: Mapping[str, object]) -> None:
        """Print the result as JSON if --json was given; NaN and infinities become null."""
        if self.as_json:
            # Otherwise the JSON is escaped, which every reader understands.
            is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
            text = json.dumps(
                finite(result), ensure_ascii=not is_unicode, default=str, allow_nan=False
            )
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def finite(value: object) -> object:
    """Return the value with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def command(*words: str | os.PathLike[str]) -> str:
    """Return a command line to copy, quoted for a shell."""
    return shlex.join(["orbiter-train", *map(str, words)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def shown(value: object) -> str:
    """Format a number for display; None becomes a dash."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Format a duration for display."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
