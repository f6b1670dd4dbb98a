"""A data set's journal is a file like the others, also while a process writes it."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from orbiter.train import DataError, StorageError, TrajectoryDataset, TrajectoryItem
from orbiter.train.formats import check, convert, detect, read, write
from tests.capture.server import ModelServer
from tests.capture.test_proxy import proxied

ITEMS = [
    TrajectoryItem("s", "a", 1.0, {"x": [1]}, messages=[{"role": "user", "content": "s"}]),
    TrajectoryItem("s", "b", 0.0, episode_id="e", step=0),
    TrajectoryItem("t", "c", episode_id="f", step=0),
]


def test_a_journal_is_read_checked_and_converted_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "traces"
    with TrajectoryDataset(path=path) as dataset:
        for item in ITEMS:
            dataset.capture(item)
        assert detect(path).name == "journal"
        assert list(read(path)) == ITEMS
        report = check(path)
        assert (report.ok, report.items, report.with_reward) == (True, 3, 2)
        dataset.assign_reward("f", 0.5)
        assert [item.reward for item in read(path)] == [1.0, 0.0, 0.5]
        assert convert(path, tmp_path / "out.jsonl").export.written == 3
        dataset.capture(TrajectoryItem("u", "d", 1.0))
    assert len(list(read(path))) == 4


def test_the_proxys_own_file_is_read_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "traces.journal"
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    with (
        ModelServer() as server,
        TrajectoryDataset(path=path) as dataset,
        proxied(server.url, dataset) as proxy,
    ):
        for number in range(1, 4):
            httpx2.post(f"{proxy}/s/x/v1/chat/completions", json=body)
            assert check(path).items == number
        httpx2.post(f"{proxy}/s/x/reward", json={"reward": 1})
        report = convert(path, tmp_path / "chats.jsonl", to_format="openai-chat")
        assert (report.source, report.export.written) == ("journal", 3)
        assert [item.reward for item in read(path)] == [1.0, 1.0, 1.0]


def test_an_unfinished_last_line_is_not_read_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    write(ITEMS, path)
    with path.open("ab") as file:
        file.write(b'12345678 {"entry":')
    before = path.read_bytes()
    assert list(read(path)) == ITEMS
    assert path.read_bytes() == before


def test_a_damaged_line_is_named_and_what_is_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    write(ITEMS, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"b", b"B"), lines[3]]))
    with pytest.raises(DataError, match=r"x\.journal:3: the checksum does not match"):
        list(read(path))
    report = check(path)
    assert [problem.line for problem in report.problems] == [3]
    assert report.items == 1


def test_a_journal_is_written_once_and_opens_as_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    assert write(ITEMS, path).written == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.journal"]
    with TrajectoryDataset(path=path) as dataset:
        assert [*dataset, *dataset.waiting] == ITEMS
    with pytest.raises(StorageError, match="exists already"):
        write(ITEMS, path)
