"""A damaged Arrow table is refused before its cells are read, which would end the process."""

from __future__ import annotations

from pathlib import Path
from struct import pack

import pytest

from orbiter.train.errors import DataError
from orbiter.train.formats import read, write
from orbiter.train.formats.tables import rows_of_batches
from orbiter.train.trajectory.item import TrajectoryItem

arrow = pytest.importorskip("pyarrow", reason="the parquet extra")


def texts(*offsets: int) -> object:
    """A column of texts whose ends are given, over ten bytes."""
    buffers = [
        None,
        arrow.py_buffer(pack(f"<{len(offsets)}i", *offsets)),
        arrow.py_buffer(b"x" * 10),
    ]
    column = arrow.Array.from_buffers(arrow.string(), len(offsets) - 1, buffers)
    return arrow.RecordBatch.from_arrays([column], names=["state"])


@pytest.mark.parametrize("offsets", [(0, 9, 3), (0, -4, 3)])
def test_texts_of_impossible_lengths_are_refused(offsets: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"^x\.arrow:1: cannot be read: "):
        list(rows_of_batches(iter([texts(*offsets)]), "x.arrow:1: cannot be read"))
    assert [*rows_of_batches(iter([texts(0, 3, 10)]), "x")] == [
        {"state": "xxx"},
        {"state": "x" * 7},
    ]


def test_a_data_set_with_damaged_offsets_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the datasets extra")
    folder = tmp_path / "d"
    write([TrajectoryItem(state="abc", action="d" * 1234, reward=0.5)], folder, "datasets")
    (table,) = folder.glob("*.arrow")
    data = table.read_bytes()
    # The end of the action comes before its beginning.
    # The same bytes are in the table's head as well, where they mean something else.
    head, found, tail = data.rpartition(pack("<2i", 0, 1234))
    assert found
    table.write_bytes(head + pack("<2i", 5678, 1234) + tail)
    with pytest.raises(DataError, match="its rows cannot be read"):
        list(read(folder, "datasets"))
