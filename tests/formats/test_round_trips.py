"""What goes out comes back: every field that a format's list names, for any chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train import TrajectoryItem
from orbiter.train.errors import DataError
from orbiter.train.formats import format_of, from_dataset, read, to_dataset, write
from orbiter.train.json_files.records import decode_object, encode_record
from orbiter.train.trajectory.left_out import Left
from tests.formats.generated import rivals, several_chats, told
from tests.trajectory.generated import items as any_items

CHATS = ("openai-chat", "trl-messages", "trl-prompt-completion", "sharegpt")
TABLES = ("parquet", "datasets")


def there_and_back(items: Sequence[TrajectoryItem], name: str) -> list[TrajectoryItem]:
    """Write and read again; rows without the disk, which would be all that takes time."""
    rows = format_of(name).rows
    if rows is None:
        with TemporaryDirectory() as folder:
            write(items, Path(folder) / "file", name)
            return list(read(Path(folder) / "file", name))
    lines = [encode_record(built.row) for built in rows.build(items, Left())]
    return [
        item
        for number, line in enumerate(lines)
        for item in rows.parse(decode_object(line), f"file:{number}")
    ]


def same(
    items: Sequence[TrajectoryItem],
    back: Sequence[TrajectoryItem],
    name: str,
    only: Sequence[str] | None = None,
) -> None:
    # With messages the state is what they say, and it was made by the same rule.
    fields = only or sorted({*format_of(name).survives, "state"} - {"metadata.messages_after"})
    wanted, found = ([told(item, fields) for item in group] for group in (items, back))
    # These leave items out, and report them: see test_llamafactory.py, test_survives.py.
    if name in {"sharegpt", "trl-prompt-completion"}:
        rest = iter(wanted)
        assert all(any(each == candidate for candidate in rest) for each in found)
    else:
        assert found == wanted


@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=60)
@given(items=several_chats)
def test_chats_come_back(items: list[TrajectoryItem], name: str) -> None:
    same(items, there_and_back(items, name), name)


@pytest.mark.parametrize("name", ["openai-chat", "trl-messages", "sharegpt"])
@settings(max_examples=40)
@given(items=several_chats)
def test_what_follows_the_last_answer_comes_back(items: list[TrajectoryItem], name: str) -> None:
    same(items, there_and_back(items, name), name, ["action", "metadata.messages_after"])


@pytest.mark.parametrize("name", ["trl-preference", "openai-dpo"])
@settings(max_examples=50)
@given(items=rivals())
def test_two_answers_come_back_the_better_first(items: list[TrajectoryItem], name: str) -> None:
    back = there_and_back(items, name)
    if not back:  # two answers that say the same are no pair
        assert told(items[0], ["action"]) == told(items[1], ["action"])
        return
    same(items, back, name)
    rewards = [item.reward for item in (items if name == "trl-preference" else back)]
    assert [item.reward for item in back] == rewards


@settings(max_examples=40)
@given(items=rivals())
def test_labelled_answers_come_back_with_their_rewards(items: list[TrajectoryItem]) -> None:
    same(items, there_and_back(items, "trl-unpaired"), "trl-unpaired")


@settings(max_examples=25)
@given(items=st.lists(any_items(), max_size=4))
def test_parquet_holds_every_field_exactly(items: list[TrajectoryItem]) -> None:
    narrow = [item for item in items if item.step is None or abs(item.step) < 2**63]
    assert there_and_back(narrow, "parquet") == narrow


@settings(max_examples=20)
@given(items=several_chats)
def test_a_data_set_in_memory_holds_every_field(items: list[TrajectoryItem]) -> None:
    assert list(from_dataset(to_dataset(items))) == items


@pytest.mark.parametrize("name", [*CHATS])
@settings(max_examples=10)
@given(items=several_chats)
def test_rows_in_memory_say_what_the_file_says(items: list[TrajectoryItem], name: str) -> None:
    same(items, list(from_dataset(to_dataset(items, name))), name)


def test_a_data_set_on_disk_comes_back(tmp_path: Path) -> None:
    items = [
        TrajectoryItem("s", "a", 0.5, {"x": {"deep": [1, None]}}, step=3, done=False),
        TrajectoryItem("s", "b", messages=[{"role": "user", "content": "s", "name": "me"}]),
    ]
    assert write(items, tmp_path / "set", "datasets").left_out == {}
    assert list(read(tmp_path / "set")) == items
    assert write(items[:1], tmp_path / "set", "datasets").written == 1
    assert list(read(tmp_path / "set")) == items[:1]


@pytest.mark.parametrize("name", TABLES)
def test_a_number_too_wide_for_a_table_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"64 bits|do not fit"):
        write([TrajectoryItem("s", "a", step=2**70)], tmp_path / "file", name)
    assert list(tmp_path.iterdir()) == []
