from __future__ import annotations

import json
from pathlib import Path

import pytest

from orbiter.train.errors import DataError
from orbiter.train.formats.verl_rows import FORMAT, prompt_of, row, write_rows
from orbiter.train.json_files.source import OnError, Skipped, Source
from orbiter.train.trajectory import TrajectoryItem

parquet = pytest.importorskip("pyarrow.parquet", reason="the parquet extra")

ITEMS = [
    TrajectoryItem("2+3?", "5", 1.0, {"ground_truth": 5, "deep": {"a": [None, 1.5]}}, task_id="a"),
    TrajectoryItem("Sing, ä.", "", messages=[{"role": "user", "content": "Sing, ä."}], step=2),
]


def read(path: Path, skipped: list[Skipped] | None = None) -> list[TrajectoryItem]:
    assert FORMAT.read is not None
    on_error: OnError = "raise" if skipped is None else "skip"
    return list(FORMAT.read(Source(path, on_error, "error", [] if skipped is None else skipped)))


def test_every_field_of_an_item_comes_back(tmp_path: Path) -> None:
    report = write_rows(ITEMS, tmp_path / "rows.parquet")
    assert (report.written, dict(report.left_out)) == (2, {})
    assert read(tmp_path / "rows.parquet") == ITEMS


def test_the_columns_are_those_that_verl_asks_for(tmp_path: Path) -> None:
    write_rows(ITEMS, tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["data_source", "prompt", "reward_model", "extra_info"]
    first = table.to_pylist()[0]
    assert first["prompt"] == [{"role": "user", "content": "2+3?"}]
    assert first["reward_model"] == {"style": "rule", "ground_truth": "5"}
    assert first["extra_info"]["index"] == 0


def test_rows_are_numbered_across_batches(tmp_path: Path) -> None:
    many = [TrajectoryItem(f"q{n}", "") for n in range(2500)]
    write_rows(iter(many), tmp_path / "rows.parquet")
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [each["extra_info"]["index"] for each in rows] == list(range(2500))
    assert read(tmp_path / "rows.parquet") == many


def test_the_truth_is_what_the_metadata_says_and_else_the_action() -> None:
    assert row(ITEMS[0], 0)["reward_model"]["ground_truth"] == "5"
    assert row(TrajectoryItem("q", "yes"), 0)["reward_model"]["ground_truth"] == "yes"


def test_instructions_take_the_place_of_the_system_turn_or_become_one() -> None:
    chat = [{"role": "system", "content": "old"}, {"role": "user", "content": "hi"}]
    item = TrajectoryItem("hi", "", messages=chat)
    assert [turn["content"] for turn in prompt_of(item)] == ["old", "hi"]
    assert [turn["content"] for turn in prompt_of(item, system="new")] == ["new", "hi"]
    assert [t["role"] for t in prompt_of(ITEMS[0], system="new")] == ["system", "user"]


def test_calls_inside_a_prompt_are_said_in_words() -> None:
    call = {"function": {"name": "look", "arguments": '{"at": 1}'}}
    chat: list[dict[str, object]] = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "Here."}]},
    ]
    said = prompt_of(TrajectoryItem("Where?", "", messages=chat))
    assert json.loads(said[1]["content"].removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert said[2] == {"role": "tool", "content": "Here."}


def test_rows_of_another_tool_become_items(tmp_path: Path) -> None:
    import pyarrow

    rows = [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": "2+3?"}],
            "reward_model": {"style": "rule", "ground_truth": "5"},
            "extra_info": {"split": "train", "index": 7},
        }
    ]
    path = tmp_path / "theirs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (item,) = read(path)
    assert (item.state, item.action) == ("2+3?", "5")
    assert item.metadata["data_source"] == "gsm8k"
    assert item.metadata["extra_info"] == {"split": "train", "index": 7}


def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"rows\.parquet:1: not a readable Parquet file"):
        read(path)


def test_a_row_without_a_prompt_is_refused_with_its_number(tmp_path: Path) -> None:
    import pyarrow

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}, {"text": "b"}]), path)
    with pytest.raises(DataError, match=r"rows\.parquet:1: a verl row needs a prompt"):
        read(path)
    skipped: list[Skipped] = []
    assert read(path, skipped) == []
    assert [each.line for each in skipped] == [1, 2]


def test_verls_rows_are_known_among_parquet_files(tmp_path: Path) -> None:
    import pyarrow

    write_rows(ITEMS, tmp_path / "rows.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}]), tmp_path / "other.parquet")
    known = [
        FORMAT.detect((tmp_path / name).read_bytes()[:64], tmp_path / name)
        for name in ("rows.parquet", "other.parquet")
    ]
    assert known[0] > 0.5
    assert known[1] == 0
    assert FORMAT.detect(b"{}", tmp_path / "absent") == 0


def test_a_failure_leaves_no_half_file(tmp_path: Path) -> None:
    broken = TrajectoryItem("q", "", messages=[{"content": "no role"}])
    with pytest.raises(DataError, match="must have a role"):
        write_rows([*ITEMS, broken], tmp_path / "rows.parquet")
    assert list(tmp_path.iterdir()) == []


def test_tools_go_into_the_system_turn_on_request() -> None:
    tool = {"type": "function", "function": {"name": "clock"}}
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    item = TrajectoryItem("hi", "", messages=chat, tools=[tool])
    first, second = prompt_of(item, tools_as_text=True)
    assert first["role"] == "system"
    assert first["content"].startswith("Be brief.\n\nYou may call these tools:\n")
    assert '"clock"' in first["content"]
    assert second == {"role": "user", "content": "hi"}
    assert prompt_of(item)[0] == {"role": "system", "content": "Be brief."}
    alone = prompt_of(TrajectoryItem("hi", "", tools=[tool]), tools_as_text=True)
    assert [turn["role"] for turn in alone] == ["system", "user"]
    assert "clock" in prompt_of(item, system="Shout.", tools_as_text=True)[0]["content"]
