from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError, DataError, StorageError, TrainError
from orbiter.train.json_files.source import OnError
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from tests.trajectory.generated import items

FORMATS = ["json", "jsonl", "csv"]


def dataset_of(*kept: TrajectoryItem) -> TrajectoryDataset:
    dataset = TrajectoryDataset()
    dataset.extend(kept)
    return dataset


def export(dataset: TrajectoryDataset, path: Path) -> int:
    writers: dict[str, Callable[[Path], int]] = {
        ".json": dataset.export_json,
        ".jsonl": dataset.export_jsonl,
        ".csv": dataset.export_csv,
    }
    return writers[path.suffix](path)


def read(path: Path) -> TrajectoryDataset:
    readers: dict[str, Callable[..., TrajectoryDataset]] = {
        ".json": TrajectoryDataset.from_json,
        ".jsonl": TrajectoryDataset.from_jsonl,
        ".csv": TrajectoryDataset.from_csv,
    }
    return readers[path.suffix](path)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=100)
@given(kept=st.lists(items(), min_size=1, max_size=3))
def test_every_item_comes_back_from_a_file_as_it_was(
    suffix: str, kept: list[TrajectoryItem], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("files") / f"items.{suffix}"
    assert export(dataset_of(*kept), path) == len(kept)
    back = read(path)
    assert list(back) == kept
    assert [item.id for item in back] == [item.id for item in kept]


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=2_000)
@given(kept=st.lists(items(), min_size=1, max_size=3))
def test_every_item_comes_back_from_a_file_as_it_was_2000_times(
    suffix: str, kept: list[TrajectoryItem], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("files") / f"items.{suffix}"
    export(dataset_of(*kept), path)
    assert [item.id for item in read(path)] == [item.id for item in kept]


def test_json_is_an_array_of_objects_named_by_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    dataset_of(TrajectoryItem("s1", "a1", 0.7), TrajectoryItem("s2", "a2", 1, step=2)).export_json(
        path
    )
    assert json.loads(path.read_text()) == [
        {"state": "s1", "action": "a1", "reward": 0.7, "metadata": {}},
        {"state": "s2", "action": "a2", "reward": 1.0, "metadata": {}, "step": 2},
    ]


def test_csv_is_headed_by_the_fields_names_and_nests_json(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    dataset_of(TrajectoryItem("s", "a", 0.7, {"k": [1]}, agent="x")).export_csv(path)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["state", "action", "reward", "metadata", "agent"],
            ["s", "a", "0.7", '{"k":[1]}', "x"],
        ]


@pytest.mark.parametrize("risky", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'x"])
def test_a_spreadsheet_runs_no_text_of_ours(risky: str, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    dataset_of(TrajectoryItem(risky, risky, -0.5, agent=risky)).export_csv(path)
    with path.open(newline="") as file:
        row = list(csv.reader(file))[1]
    assert row == ["'" + risky, "'" + risky, "-0.5", "{}", "'" + risky]
    assert TrajectoryDataset.from_csv(path)[0].state == risky


def test_a_csv_row_of_empty_cells_is_no_item(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("state,action,reward,metadata\n,,,\ns,a,1,\n,,,\n\n,b,,\n")
    items = list(TrajectoryDataset.from_csv(path).waiting) + list(TrajectoryDataset.from_csv(path))
    assert [(item.state, item.action, item.reward) for item in items] == [
        ("", "b", None), ("s", "a", 1.0),
    ]  # fmt: skip


def test_csv_tells_an_empty_text_from_none(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    kept = [TrajectoryItem("", "", 0.0, agent=""), TrajectoryItem("", "", 0.0)]
    dataset_of(*kept).export_csv(path)
    assert list(TrajectoryDataset.from_csv(path)) == kept


def test_a_cell_may_be_longer_than_the_standard_reader_takes(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    long = TrajectoryItem("x" * 200_000, "a", 1.0)
    dataset_of(long).export_csv(path)
    assert TrajectoryDataset.from_csv(path)[0] == long


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_export_leaves_the_old_file_and_nothing_else(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"items.{suffix}"
    path.write_text("old")
    mutable: dict[str, object] = {"k": "v"}
    dataset = dataset_of(TrajectoryItem("s", "a", 1.0, {"nested": mutable}))
    mutable["k"] = object()
    with pytest.raises(TypeError, match="object is not JSON"):
        export(dataset, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_cannot_be_opened_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "missing" / f"items.{suffix}"
    with pytest.raises(StorageError, match=f"cannot read {path}: No such file"):
        read(path)
    with pytest.raises(StorageError, match=f"cannot write {path}: No such file"):
        export(dataset_of(TrajectoryItem("s", "a", 1.0)), path)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_an_empty_data_set_comes_back_empty(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"items.{suffix}"
    assert export(dataset_of(), path) == 0
    assert len(read(path)) == 0


GOOD = b'{"state": "s", "action": "a", "reward": 0.5, "metadata": {}}'

CORRUPTIONS: dict[str, tuple[bytes, str | None]] = {
    "bad JSON": (
        b'{"state": "s" "action": "a", "reward": 0.5}',
        "field 'state': not JSON at byte 15, '\"action\": \"a\", \"rewa': expected ',' or '}'",
    ),
    "duplicate key": (
        b'{"state": "s", "state": "t", "action": "a", "reward": 0.5}',
        "field 'state': expected once, got 2 times",
    ),
    "lone surrogate": (
        b'{"state": "s\\ud83d", "action": "a", "reward": 0.5}',
        'field \'state\': not JSON at byte 19, \'", "action": "a", "r\': '
        "unexpected end of escaped utf-16 surrogate pair",
    ),
    "truncated": (b'{"state": "s", "action": "a", "rew', "field 'action': ends in the middle"),
    "bad UTF-8": (
        b'{"state": "s", "action": "\xff", "reward": 0.5}',
        "field 'action': byte 0xff is not UTF-8",
    ),
    "an array": (b'["s", "a", 0.5]', "expected object, got array"),
    "NUL tail": (GOOD + b"\0\0", "field 'metadata': not JSON at byte 62, '\\x00': trailing"),
    "type drift": (
        b'{"state": "s", "action": "a", "reward": "0.5"}',
        "field 'reward': expected int | float | null, got str",
    ),
    "missing key": (b'{"state": "s", "reward": 0.5}', "field 'action': missing"),
    "renamed key": (
        b'{"stat": "s", "action": "a", "reward": 0.5}',
        "field 'stat': no such field; did you mean 'state'?",
    ),
    "extra key": (
        b'{"state": "s", "action": "a", "reward": 0.5, "colour": "red"}',
        "field 'colour': no such field (extra=\"metadata\" keeps",
    ),
    "blank line": (b"", None),
    "NaN": (
        b'{"state": "s", "action": "a", "reward": NaN}',
        "field 'reward': expected a finite number, got 'NaN}",
    ),
    "30-digit int": (
        b'{"state": "s", "action": "a", "reward": 123456789012345678901234567890}',
        "reward is 123456789012345678901234567890, which a float would round",
    ),
}


def corrupted(bad: bytes, path: Path) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in [*[GOOD] * 499, bad, *[GOOD] * 500]))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_of_a_line_has_its_ruling(name: str, tmp_path: Path) -> None:
    bad, message = CORRUPTIONS[name]
    path = tmp_path / "items.jsonl"
    corrupted(bad, path)
    if message is None:
        assert len(TrajectoryDataset.from_jsonl(path)) == 999
        return
    with pytest.raises(DataError) as caught:
        TrajectoryDataset.from_jsonl(path)
    assert str(caught.value).startswith(f"{path}:500: {message}")


@pytest.mark.parametrize("name", [name for name, (_, message) in CORRUPTIONS.items() if message])
def test_a_skipped_line_is_counted_and_reported(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "items.jsonl"
    corrupted(CORRUPTIONS[name][0], path)
    dataset = TrajectoryDataset.from_jsonl(path, on_error="skip")
    assert len(dataset) == 999
    assert [(skipped.path, skipped.line) for skipped in dataset.skipped] == [(str(path), 500)]
    assert str(dataset.skipped[0]) in caplog.text


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    for suffix, data in {"json": b"[" + GOOD + b"]", "jsonl": GOOD}.items():
        path = tmp_path / f"items.{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + data)
        assert len(read(path)) == 1
    path = tmp_path / "items.csv"
    path.write_bytes(b"\xef\xbb\xbfstate,action,reward\ns,a,0.5\n")
    assert TrajectoryDataset.from_csv(path)[0] == TrajectoryItem("s", "a", 0.5)


@pytest.mark.parametrize(("suffix", "data"), [("jsonl", b""), ("jsonl", b"\n \n"), ("json", b"")])
def test_a_file_of_nothing_is_refused(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"items.{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path}:1: .*expected"):
        read(path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"state":"s","action":"a","reward":1,"metadata":{"k":1,"k":2}}',
        b'{"state" :"s","state":"t","action":"a","reward":1}',
        b'{"state"\t:"s","state":"t","action":"a","reward":1}',
        b'{"state":"s\\u0022:","state":"t\\u0022:","action":"a","reward":1}',
        b'{"state":"s","action":"a","reward":1,"reward":null}',
        b'{"state":"s","action":"a","reward":1,"metadata":{},"metadata":{}}',
        b'{"state":"s","action":"a","reward":1,"step":null,"step":1}',
    ],
)
def test_a_repeated_key_is_found_however_it_hides(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(line)
    with pytest.raises(DataError, match="expected once, got 2 times"):
        TrajectoryDataset.from_jsonl(path)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_unknown_fields_go_to_metadata_on_request(on_error: OnError, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"state":"s","action":"a","reward":1,"colour":"red","metadata":{"k":1}}\n')
    dataset = TrajectoryDataset.from_jsonl(path, extra="metadata", on_error=on_error)
    assert dataset[0].metadata == {"k": 1, "colour": "red"}
    path.write_bytes(b'{"state":"s","action":"a","reward":1,"k":"red","metadata":{"k":1}}\n')
    with pytest.raises(DataError, match="field 'k': appears both in the item and in its metadata"):
        TrajectoryDataset.from_jsonl(path, extra="metadata")
    path = tmp_path / "items.csv"
    path.write_bytes(b"state,action,reward,colour\ns,a,1,red\n")
    assert TrajectoryDataset.from_csv(path, extra="metadata")[0].metadata == {"colour": "red"}


def test_an_array_names_the_line_on_which_the_bad_item_begins(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    for bad, _ in (CORRUPTIONS["NaN"], CORRUPTIONS["type drift"]):
        path.write_bytes(b"[\n" + GOOD + b",\n" + bad + b",\n" + GOOD + b"]")
        with pytest.raises(DataError, match=rf"{path}:3: field 'reward': expected"):
            TrajectoryDataset.from_json(path)
        dataset = TrajectoryDataset.from_json(path, on_error="skip")
        assert (len(dataset), [skipped.line for skipped in dataset.skipped]) == (2, [3])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD, r"1: expected a JSON array of items \(from_jsonl"),
        (b"[" + GOOD + b"\n" + GOOD + b"]", "2: expected the end of the array, got"),
        (b"[" + GOOD + b"\n,{", "2: ends in the middle"),
        (b"[" + GOOD + b"]\n]", "1: expected the end of the array"),
        (b"[" + GOOD, "1: expected the end of the array, got ''"),
        (b"[" * 100_000, "1: expected object, got array"),
        (b'[{"state":' + b"[" * 100_000, "1: field 'state': expected str, got array"),
        (
            b'[{"state":"s","action":"a","reward":1,"metadata":{"k":' + b"[" * 100_000,
            "1: nested too deep",
        ),
    ],
)
def test_a_broken_array_is_refused_where_it_breaks(
    data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "items.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{path}:{message}"):
        TrajectoryDataset.from_json(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "1: field 'state': no such column among none"),
        (b"state,action\ns,a\n", "1: field 'reward': no such column"),
        (b"stat,state,action,reward\n", "1: field 'stat': no such field; did you mean 'state'"),
        (b"state,action,reward,reward\n", "1: field 'reward': expected one column"),
        (b'state,action,reward\n"s\n\n1",a,1\ns,a\n', "5: expected 3 cells, got 2"),
        (b"state,action,reward\ns,a,good\n", "2: field 'reward': 'good' cannot be read"),
        (b"state,action,reward\ns,a,nan\n", "2: reward must be finite, got nan"),
        (b"state,action,reward\ns,a,1_0\n", "2: field 'reward': '1_0' cannot be read"),
        (b"state,action,reward\ns,a," + b"1" * 30 + b"\n", "2: reward is 1111"),
        (b"state,action,reward\ns,\xff,1\n", "2: field 'action': byte 0xff is not UTF-8"),
        (b"state,action,reward,step\ns,a,1,x\n", "2: field 'step': 'x' cannot be read"),
        (b'state,action,reward\n"s"x,a,1\n', "2: not CSV: "),
    ],
)
def test_a_bad_csv_file_is_refused_by_line_and_field(
    data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{path}:{message}"):
        TrajectoryDataset.from_csv(path)


def test_a_csv_row_that_is_skipped_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b"state,action,reward\ns,a,1\ns,a\ns,a,TRUE\ns,a,0\n")
    dataset = TrajectoryDataset.from_csv(path, on_error="skip")
    assert (len(dataset), [skipped.line for skipped in dataset.skipped]) == (2, [3, 4])


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        TrajectoryDataset.from_jsonl(path, on_error="ignore")  # type: ignore[arg-type]  # the point
    with pytest.raises(ConfigError, match="extra must be 'error' or 'metadata', got 'drop'"):
        TrajectoryDataset.from_jsonl(path, extra="drop")  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=150)
@given(at=st.integers(0, 10_000), junk=st.binary(max_size=4), cut=st.integers(0, 4))
def test_damaged_bytes_never_raise_a_foreign_error(
    suffix: str, at: int, junk: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"items.{suffix}"
    export(dataset_of(*[TrajectoryItem("é=s", "a\n", 0.5, {"k": [1]}, step=1)] * 3), path)
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] + junk + data[at + cut :])
    try:
        read(path)
    except TrainError as error:
        assert str(path) in str(error)  # noqa: PT017 - an error is allowed, not demanded


def test_a_broken_array_costs_time_in_proportion_to_its_items(tmp_path: Path) -> None:
    def lines_scanned(items: int) -> float:
        path = tmp_path / f"{items}.json"
        element = '{"state":"s","action":"a","reward":1}'
        path.write_text("[\n" + ",\n".join([element] * items) + "\n")
        started = time.process_time()
        with pytest.raises(DataError, match=rf":{items + 2}: expected the end of the array"):
            TrajectoryDataset.from_json(path)
        return time.process_time() - started

    lines_scanned(1_000)
    few, many = (min(lines_scanned(items) for _ in range(3)) for items in (4_000, 32_000))
    assert many / few < 24, "eight times the items: 8 if linear, 64 if quadratic"
