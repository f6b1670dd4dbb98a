"""Reads and writes Hugging Face data sets, in memory and in folders made by `save_to_disk`.

A folder is written as our own record, without loss; a folder with rows of another format is read
as that format. In memory the rows may be of any format: a TRL trainer accepts
`to_dataset(items, "trl-messages")`. Not supported: the hub, and streaming data sets.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orbiter.train.contained import inside
from orbiter.train.disk import disk_errors
from orbiter.train.errors import DataError, StorageError, require
from orbiter.train.formats.format import Column, ExportReport, Format, Rows
from orbiter.train.formats.rows import items_of_records
from orbiter.train.formats.tables import FOREIGN, plain_rows, rows_in, rows_of, rows_of_batches
from orbiter.train.json_files import fields
from orbiter.train.json_files.source import Source
from orbiter.train.trajectory.item import NAMES, TrajectoryItem
from orbiter.train.trajectory.left_out import Left

if TYPE_CHECKING:
    import datasets

BATCH = 512
"""The number of rows in memory at once while a data set is read."""
ONE = "dataset_info.json"
SEVERAL = "dataset_dict.json"
STATE = "state.json"


def to_dataset(items: Iterable[TrajectoryItem], format: str = "jsonl") -> datasets.Dataset:
    """Return items as a Hugging Face data set.

    Args:
        items: A `TrajectoryDataset`, or any items.
        format: The format of the rows, such as "trl-messages"; "jsonl" is our own record.

    Raises:
        ConfigError: there is no format of that name.
        DataError: the format has no rows, or cannot hold an item.
        MissingExtraError: `datasets` is not installed.
    """
    return _made(items, rows_of(format), Left())


def from_dataset(dataset: datasets.Dataset | datasets.DatasetDict) -> Iterator[TrajectoryItem]:
    """Yield the items in a Hugging Face data set, whose rows may be of any format.

    The splits of a `DatasetDict` come one after another; `metadata["split"]` names the split.

    Raises:
        DataError: the columns match no format, or a row is wrong; the message names the row, from
            1.
    """
    return _items(dataset, Source("dataset", "raise", "error", []))


def _detect(_: bytes, path: Path) -> float:
    return float(any((path / name).is_file() for name in (ONE, SEVERAL)))


def _read(source: Source) -> Iterator[TrajectoryItem]:
    library = require("datasets", extra="datasets")
    # Before the library opens anything: the file names come from JSON in the folder, and may point
    # outside it.
    _check_files(Path(source.path))
    try:
        loaded = library.load_from_disk(source.path)
    except FOREIGN as error:
        raise DataError(
            f"{source.path}:1: not a readable data set: {type(error).__name__}: {error}"
        ) from error
    return _items(loaded, source)


def _check_files(folder: Path) -> None:
    """Check that the data set's tables are files inside its folder.

    Raises:
        StorageError: one is elsewhere, a device, or a pipe.
    """
    if (folder / SEVERAL).is_file():
        splits = _described(folder / SEVERAL).get("splits")
        for split in splits if isinstance(splits, list) else []:
            _check_files(inside(folder, split, str(folder / SEVERAL)))
        return
    tables = _described(folder / STATE).get("_data_files")
    for table in tables if isinstance(tables, list) else []:
        name = table.get("filename") if isinstance(table, Mapping) else None
        path = inside(folder, name, str(folder / STATE))
        if path.exists() and not path.is_file():
            raise StorageError(f"{path} is not a plain file")


def _described(path: Path) -> Mapping[str, Any]:
    """Return the content of a JSON file; {} if it is damaged, which the library reports."""
    try:
        described = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return described if isinstance(described, dict) else {}


def _items(loaded: Any, source: Source) -> Iterator[TrajectoryItem]:  # noqa: ANN401 - not typed
    # A DatasetDict is a dict; a single data set is treated as one split without a name.
    splits: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {"": loaded}
    for split, dataset in splits.items():
        rows = rows_in(dataset.column_names, source.path)
        for item in items_of_records(source, plain_rows(_rows(dataset, source), rows), rows):
            yield replace(item, metadata={**item.metadata, "split": split}) if split else item


def _rows(dataset: Any, source: Source) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 - as above
    """Yield the rows as stored in Arrow, since the library's JSON reader rounds numbers."""
    batches = dataset.with_format("arrow").iter(BATCH)
    return rows_of_batches(batches, f"{source.path}:1: its rows cannot be read")


def _write(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
    """Write a folder atomically, replacing an older data set of that name."""
    # The folder is replaced as a whole, so it must not be somebody's other files.
    if path.exists() and not _detect(b"", path):
        raise StorageError(f"{path} exists and is not a data set; choose another folder")
    dataset = _made(items, rows_of("jsonl"), Left())
    # Beside the target, because a rename is atomic only within one file system.
    staged = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        with disk_errors(path):
            dataset.save_to_disk(staged)
            if path.exists():
                shutil.rmtree(path)
            staged.rename(path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return ExportReport(len(dataset), {}, path)


def _made(items: Iterable[TrajectoryItem], rows: Rows, left: Left) -> datasets.Dataset:
    library = require("datasets", extra="datasets")
    built = [each.row for each in rows.build(items, left)]
    # An optional column that no row has is left out: TRL looks at which columns exist.
    used = {name for row in built for name in row}
    features = library.Features(
        {name: _feature(rows, name) for name in rows.columns if name in used or not built}
    )
    try:
        columns = {
            name: [_cell(row.get(name), rows.columns[name]) for row in built] for name in features
        }
        return library.Dataset.from_dict(columns, features=features)
    except FOREIGN as error:
        raise DataError(f"the items do not fit a data set: {error}") from error


def _cell(value: Any, column: Column) -> object:  # noqa: ANN401 - any JSON
    """Return a cell with its JSON as text, since the library's writer rounds numbers."""
    if value is None or column not in ("object", "objects"):
        return value
    if column == "object":
        return fields.encode(value).decode()
    return [fields.encode(each).decode() for each in value]


def _feature(rows: Rows, name: str) -> Any:  # noqa: ANN401 - as above
    library = require("datasets", extra="datasets")
    kinds = {
        "text": library.Value("string"),
        "number": library.Value("float64"),
        "whole": library.Value("int64"),
        "flag": library.Value("bool"),
        "numbers": library.List(library.Value("float64")),
        "wholes": library.List(library.Value("int64")),
        # Not a struct: rows with different keys would all get the union of the keys, as nulls.
        "object": library.Json(),
        "objects": library.List(library.Json()),
    }
    return kinds[rows.columns[name]]


FORMAT = Format(
    name="datasets",
    about="Hugging Face datasets on disk; rows of other formats are read",
    suffixes=(),
    survives=frozenset(NAMES),
    detect=_detect,
    read=_read,
    write=_write,
)
