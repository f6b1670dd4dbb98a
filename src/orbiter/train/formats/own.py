"""The formats of our own record: JSON, JSON lines, CSV, and the journal of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from orbiter.train.errors import DataError, StorageError, did_you_mean
from orbiter.train.formats.format import Built, ExportReport, Format, Row, Rows
from orbiter.train.json_files.records import first_object
from orbiter.train.json_files.source import BOM, Source
from orbiter.train.trajectory import TrajectoryDataset, csv_files, files
from orbiter.train.trajectory.item import NAMES, TrajectoryItem
from orbiter.train.trajectory.journal import is_journal, read_journal
from orbiter.train.trajectory.left_out import Left

REQUIRED = ("state", "action", "reward")


def _read_jsonl(source: Source) -> Iterator[TrajectoryItem]:
    return files.read_jsonl(source.path, source.on_error, "error", source.skipped)


def _read_json(source: Source) -> Iterator[TrajectoryItem]:
    return files.read_json(source.path, source.on_error, "error", source.skipped)


def _read_csv(source: Source) -> Iterator[TrajectoryItem]:
    return csv_files.read_csv(source.path, source.on_error, "error", source.skipped)


def _export_csv(items: Iterable[TrajectoryItem], path: Path) -> int:
    # All items at once, because the columns depend on every item.
    return csv_files.export_csv(list(items), path)


def _writer(
    export: Callable[[Iterable[TrajectoryItem], Path], int],
) -> Callable[[Iterable[TrajectoryItem], Path], ExportReport]:
    return lambda items, path: ExportReport(export(items, path), {}, path)


def _write_journal(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
    """Write a new journal; an existing one may be in use, so it is never replaced."""
    # A journal that is being written must not disappear under its writer.
    if path.exists():
        raise StorageError(f"{path} exists already; write a new journal to another path")
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with TrajectoryDataset(path=staged) as dataset:
            for item in items:
                dataset.capture(item)
        staged.rename(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        staged.unlink(missing_ok=True)
        staged.with_name(staged.name + ".lock").unlink(missing_ok=True)
    return ExportReport(len(dataset) + len(dataset.waiting), {}, path)


def _is_item(head: bytes) -> bool:
    row = first_object(head)
    # The head ends inside a long state, before "action": only the keys so far are known.
    cut_off = all(value is None for value in row.values())
    return "state" in row and ("action" in row or cut_off)


def _is_array(head: bytes) -> bool:
    return head.removeprefix(BOM).lstrip()[:1] == b"["


def _is_table(head: bytes) -> bool:
    first = head.removeprefix(BOM).splitlines()[:1]
    # Only the header is looked at, where no cell holds a comma or a line break.
    columns = [cell.strip(b'"').decode("utf-8", "replace") for cell in b"".join(first).split(b",")]
    return set(REQUIRED) <= set(columns)


def _parse(row: Row, _: str) -> Iterator[TrajectoryItem]:
    # A table has a cell for every column; empty ones are fields that the item does not have.
    known = {key: value for key, value in row.items() if value is not None}
    # The reward may be unknown, so its absence is no error.
    if missing := [name for name in REQUIRED[:2] if name not in known]:
        raise DataError(f"field {missing[0]!r}: missing")
    if unknown := sorted(known.keys() - set(NAMES)):
        raise DataError(f"field {unknown[0]!r}: no such field{did_you_mean(unknown[0], NAMES)}")
    yield TrajectoryItem(**known)


def _build(items: Iterable[TrajectoryItem], _: Left) -> Iterator[Built]:
    for item in items:
        yield Built(item.to_dict(), 1)


ROWS = Rows(
    claims=lambda row: float({"state", "action"} <= row.keys()),
    parse=_parse,
    build=_build,
    columns={
        "state": "text",
        "action": "text",
        "reward": "number",
        "metadata": "object",
        "task_id": "text",
        "episode_id": "text",
        "step": "whole",
        "agent": "text",
        "messages": "objects",
        "tools": "objects",
        "tool_calls": "objects",
        "done": "flag",
        "timestamp": "number",
        "prompt_token_ids": "wholes",
        "token_ids": "wholes",
        "logprobs": "numbers",
    },
)
"""The mapping of our own record, as an object and as a row of a table."""
JSONL = Format(
    name="jsonl",
    about="our own record, one JSON object a line",
    suffixes=(".jsonl",),
    survives=frozenset(NAMES),
    detect=lambda head, _: float(_is_item(head) and not _is_array(head)),
    read=_read_jsonl,
    write=_writer(files.export_jsonl),
    rows=ROWS,
)
JSON = Format(
    name="json",
    about="our own record, one JSON array",
    suffixes=(".json",),
    survives=frozenset(NAMES),
    detect=lambda head, _: float(_is_item(head) and _is_array(head)),
    read=_read_json,
    write=_writer(files.export_json),
)
CSV = Format(
    name="csv",
    about="our own record as a table, nested fields as JSON text",
    suffixes=(".csv",),
    survives=frozenset(NAMES),
    detect=lambda head, _: float(_is_table(head)),
    read=_read_csv,
    write=_writer(_export_csv),
)
JOURNAL = Format(
    name="journal",
    about="the journal of a data set or of the proxy; can be read while it is being written",
    suffixes=(".journal",),
    survives=frozenset(NAMES),
    detect=lambda head, _: float(is_journal(head)),
    read=read_journal,
    write=_write_journal,
)
