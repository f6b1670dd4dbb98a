"""By name or by what stands in a file: reading, writing, converting, checking."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from orbiter.train import ConfigError, DataError, StorageError, TrajectoryDataset, TrajectoryItem
from orbiter.train.formats import (
    NAMES,
    check,
    convert,
    detect,
    format_of,
    read,
    to_dataset,
    write,
)
from orbiter.train.json_files.source import Skipped

ITEMS = [TrajectoryItem("s", "a", 1.0), TrajectoryItem("s", "b", 0.0, episode_id="e", step=0)]
CHAT = '{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}'


@pytest.mark.parametrize(
    "name", [name for name in NAMES if format_of(name).read and format_of(name).write]
)
def test_what_is_written_is_known_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(ITEMS, path, name)
    # A chat without calls is the same in OpenAI's form and in TRL's.
    assert detect(path).name == ("openai-chat" if name == "trl-messages" else name)


def test_a_cut_off_first_object_is_known_by_its_names(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write([TrajectoryItem("x" * 200_000, "a", 0.0)], path, "openai-chat")
    assert detect(path).name == "openai-chat"
    write([TrajectoryItem('"' * 200_000, "a", 0.0)], path, "jsonl")
    assert detect(path).name == "jsonl"


def test_the_suffix_names_our_own_record(tmp_path: Path) -> None:
    for suffix in ("jsonl", "json", "csv", "parquet"):
        write(ITEMS, tmp_path / f"x.{suffix}")
        assert detect(tmp_path / f"x.{suffix}").name == suffix
        assert list(read(tmp_path / f"x.{suffix}")) == ITEMS
    with pytest.raises(ConfigError, match=r"suffix of .*x\.dat names no format"):
        write(ITEMS, tmp_path / "x.dat")


def test_a_name_that_is_no_format_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        write(ITEMS, tmp_path / "x", "sharegtp")
    (tmp_path / "x").write_text("hello")
    with pytest.raises(DataError, match=r"x:1: cannot tell its format: it begins with b'hello'"):
        detect(tmp_path / "x")
    with pytest.raises(DataError, match="it is a folder"):
        detect(tmp_path)
    with pytest.raises(StorageError, match="cannot read"):
        read(tmp_path / "missing")
    with pytest.raises(DataError, match="has no rows"):
        to_dataset(ITEMS, "csv")


def test_an_error_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{CHAT}\n\n{{"messages": [{{"content": "1"}}]}}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:3: messages\[0\] must have a role"):
        list(read(path, "openai-chat"))
    path.write_text(f'[\n{CHAT},\n{CHAT},\n  {{"messages": 1}}]')
    with pytest.raises(DataError, match=r"x\.jsonl:4: messages must be a list"):
        list(read(path, "openai-chat"))
    path.write_text(f"[{CHAT},\n\n{CHAT} oops]")
    with pytest.raises(DataError, match=r"x\.jsonl:3: not JSON: .*the rest is not read"):
        list(read(path, "openai-chat"))
    path.write_text(f"[{CHAT}")
    with pytest.raises(DataError, match=r"x\.jsonl:1: the array has no end"):
        list(read(path, "openai-chat"))
    path.write_text("\n \n")
    with pytest.raises(DataError, match=r"x\.jsonl:1: holds no records"):
        list(read(path, "openai-chat"))


def test_bad_records_can_be_skipped_and_are_told(tmp_path: Path) -> None:
    path, skipped = tmp_path / "x.jsonl", list[Skipped]()
    path.write_text(f'{CHAT}\n{{"messages": 3}}\nnot json\n{CHAT}\n')
    items = list(read(path, on_error="skip", skipped=skipped))
    assert [item.action for item in items] == ["2", "2"]
    assert [problem.line for problem in skipped] == [2, 3]


def test_check_says_what_is_in_a_file_and_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{CHAT}\n{{"messages": 3}}\n{CHAT}\n')
    before = path.read_bytes()
    report = check(path)
    assert (report.format, report.items, report.episodes, report.with_reward) == (
        "openai-chat", 2, 2, 0,
    )  # fmt: skip
    assert not report.ok
    assert str(report).endswith("1 problems\n" + str(report.problems[0]))
    assert path.read_bytes() == before
    path.write_text("[]")
    assert [str(problem) for problem in check(path, "openai-chat").problems] == [
        f"{path}:1: holds no items"
    ]


def test_convert_finds_the_format_out_and_reports_both_sides(tmp_path: Path) -> None:
    write(ITEMS, tmp_path / "in.jsonl")
    report = convert(tmp_path / "in.jsonl", tmp_path / "out.jsonl", to_format="openai-chat")
    assert (report.source, report.target) == ("jsonl", "openai-chat")
    assert report.export.left_out == {"reward": 2, "episode_id": 1, "step": 1}
    assert "left out" in str(report)
    again = convert(tmp_path / "out.jsonl", tmp_path / "again.csv")
    assert (again.source, again.target, again.export.written) == ("openai-chat", "csv", 2)


def test_convert_refuses_to_write_over_what_it_reads_or_nothing(tmp_path: Path) -> None:
    write(ITEMS, tmp_path / "in.jsonl")
    with pytest.raises(ConfigError, match="is the file to read"):
        convert(tmp_path / "in.jsonl", tmp_path / "." / "in.jsonl", to_format="sharegpt")
    (tmp_path / "bad.jsonl").write_text('{"messages": 1}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: no item could be read.*:1: messages must"):
        convert(tmp_path / "bad.jsonl", tmp_path / "out.jsonl", on_error="skip")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_failed_export_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("precious")
    bad = TrajectoryItem("s", "a", messages=[{"content": "no role"}])
    with pytest.raises(DataError, match=r"item \w+ is not a chat: messages\[0\] must have a role"):
        write([*ITEMS, bad], path, "openai-chat")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("array", [False, True])
def test_memory_does_not_grow_with_the_file(array: bool, tmp_path: Path) -> None:
    path, text = tmp_path / "x.json", json.dumps("word " * 400)
    row = CHAT.replace('"1+1?"', text)
    path.write_text("[" + ",\n".join([row] * 3000) + "]" if array else "\n".join([row] * 3000))
    assert path.stat().st_size > 6_000_000
    tracemalloc.start()
    count = sum(1 for _ in read(path, "openai-chat"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    assert peak < 2_000_000


def test_every_format_is_complete() -> None:
    for name in NAMES:
        format = format_of(name)
        assert format.name == name
        assert format.read or format.write
        assert format.about
        assert format.survives


def test_a_data_set_of_ours_is_written_as_it_is(tmp_path: Path) -> None:
    dataset = TrajectoryDataset()
    dataset.extend(ITEMS)
    assert write(dataset, tmp_path / "x.jsonl").written == 2
