"""Reads and writes verl's rows: a Parquet file for its `RLHFDataset` and reward managers.

    data_source the origin of a row, which a reward manager reads
    prompt        the chat before the answer, as [{role, content}]
    reward_model  {style: "rule", ground_truth}
    extra_info    {index, item}: the row's number, and the whole item as JSON

The item in `extra_info` is passed to our reward functions, and because of it every field survives.
Tool calls inside a prompt are written as text, since a row has no field for them; the tools that
the agent may call are configured in verl, or on request written into the system turn. Not
supported: images, and token ids as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from orbiter.train.chat.message import Message, check_messages, text_of
from orbiter.train.chat.transcript import state_of, write_action
from orbiter.train.engine.prompt import ROLES, tools_in_words
from orbiter.train.errors import DataError, require
from orbiter.train.formats.format import ExportReport, Format
from orbiter.train.formats.parquet import open_table, rows_of_table
from orbiter.train.json_files.source import Source
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory.codec import decode_item, encode_item
from orbiter.train.trajectory.item import NAMES, TrajectoryItem

DATA_SOURCE = "orbiter-train"
"""The source of a row whose item does not name one in `metadata["data_source"]`."""
TRUTH = "ground_truth"
"""The metadata entry for the ground truth; without it, the item's action is used."""
ROWS_AT_ONCE = 1024
"""The number of rows in memory while a file is written or read."""


def write_rows(
    items: Iterable[TrajectoryItem],
    path: Path,
    *,
    system: str | None = None,
    tools_as_text: bool = False,
    tasks: Sequence[str | None] | None = None,
) -> ExportReport:
    """Write one row per item.

    Args:
        items: The tasks, in the order of the rows.
        path: The file to write, atomically.
        system: Replaces the system message of every prompt; a prompt without one gets it added.
        tools_as_text: Write the tools of an item into its system message.
        tasks: What an agent gets for each item, as JSON; it goes into `extra_info`.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: the messages of an item are not a valid chat.
    """
    with atomic_write(path) as file:
        make_row = partial(row, system=system, tools_as_text=tools_as_text, tasks=tasks)
        return ExportReport(_write(items, file, make_row, tasks=tasks is not None), {}, path)


def _write(
    items: Iterable[TrajectoryItem],
    file: IO[bytes],
    row_of: Callable[[TrajectoryItem, int], dict[str, Any]],
    *,
    tasks: bool,
) -> int:
    arrow = require("pyarrow", extra="parquet")
    parquet = require("pyarrow.parquet", extra="parquet")
    schema, remaining, count = _schema(arrow, tasks=tasks), iter(items), 0
    with parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(remaining, ROWS_AT_ONCE)):
            rows = [row_of(item, count + offset) for offset, item in enumerate(batch)]
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
            count += len(batch)
    return count


def _schema(arrow: Any, *, tasks: bool) -> Any:  # noqa: ANN401 - pyarrow is untyped here
    text = arrow.string()
    extra = {"index": arrow.int64(), "item": text} | ({"task": text} if tasks else {})
    turn = arrow.struct({"role": text, "content": text})
    return arrow.schema(
        {
            "data_source": text,
            "prompt": arrow.list_(turn),
            "reward_model": arrow.struct({"style": text, "ground_truth": text}),
            "extra_info": arrow.struct(extra),
        }
    )


def row(
    item: TrajectoryItem,
    index: int,
    *,
    system: str | None = None,
    tools_as_text: bool = False,
    tasks: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """Return the row of an item."""
    # For verl's own reward managers; ours read the item itself.
    truth = item.metadata.get(TRUTH, item.action)
    task = {} if tasks is None else {"task": tasks[index]}
    return {
        "data_source": str(item.metadata.get("data_source", DATA_SOURCE)),
        "prompt": prompt_of(item, system=system, tools_as_text=tools_as_text),
        "reward_model": {"style": "rule", "ground_truth": str(truth)},
        "extra_info": {"index": index, "item": encode_item(item).decode(), **task},
    }


def prompt_of(
    item: TrajectoryItem, *, system: str | None = None, tools_as_text: bool = False
) -> list[dict[str, str]]:
    """Return the chat before the answer, with only role and text."""
    messages = check_messages(item.messages or [{"role": "user", "content": item.state}])
    turns = [
        {
            "role": ROLES.get(str(message["role"]), str(message["role"])),
            "content": _text_with_calls(message),
        }
        for message in messages
    ]
    # After the roles were mapped, because a developer message counts as a system message.
    has_system = bool(turns) and turns[0]["role"] == "system"
    given = turns.pop(0)["content"] if has_system else ""
    parts = [given if system is None else system, tools_in_words(item) if tools_as_text else ""]
    text = "\n\n".join(part for part in parts if part)
    # An empty system message stays: without one, many templates add a default.
    return [{"role": "system", "content": text}, *turns] if text or has_system else turns


def _text_with_calls(message: Message) -> str:
    calls = cast("Sequence[Message] | None", message.get("tool_calls"))
    return write_action(text_of(message.get("content")), calls)


def _read(source: Source) -> Iterator[TrajectoryItem]:
    with source.open() as file:
        rows = rows_of_table(source, open_table(source, file), ROWS_AT_ONCE)
        for number, each in enumerate(rows, start=1):
            try:
                yield _item(each)
            except DataError as error:
                source.refuse(number, str(error), error)


def _item(values: Mapping[str, Any]) -> TrajectoryItem:
    """Return the item stored in a row, or make one if another tool wrote the row."""
    extra = values.get("extra_info")
    if isinstance(extra, Mapping) and isinstance(extra.get("item"), str):
        return decode_item(extra["item"].encode())
    if "prompt" not in values:
        raise DataError(f"a verl row needs a prompt, got the columns {sorted(values)}")
    prompt = check_messages(values["prompt"], "prompt")
    judged = values.get("reward_model")
    truth = judged.get(TRUTH) if isinstance(judged, Mapping) else None
    noted = {"data_source": values.get("data_source"), TRUTH: truth, "extra_info": extra}
    # A single question needs no messages; its state says all.
    plain = len(prompt) == 1 and prompt[0]["role"] == "user"
    return TrajectoryItem(
        state_of(prompt),
        "" if truth is None else str(truth),
        metadata={name: value for name, value in noted.items() if value is not None},
        messages=None if plain else prompt,
    )


def _detect(head: bytes, path: Path) -> float:
    """Recognise a Parquet file of verl rows by its column names, which are at its end."""
    if not head.startswith(b"PAR1"):
        return 0.0
    try:
        with path.open("rb") as file:
            # Without pyarrow, because detection must work before the extra is installed.
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            tail = file.read()
    except OSError:
        return 0.0
    return 0.9 if b"prompt" in tail and b"reward_model" in tail else 0.0


FORMAT = Format(
    name="verl",
    about="rows for verl's RLHFDataset, as of verl 0.9",
    suffixes=(".parquet",),
    survives=frozenset(NAMES),
    detect=_detect,
    read=_read,
    write=write_rows,
)
"""The format of verl's rows."""
