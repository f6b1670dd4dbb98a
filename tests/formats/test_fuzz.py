"""Whatever stands in a file, reading it gives items or an error of ours that names the file."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import DataError, TrainError
from orbiter.train.formats import check, detect, read, write
from orbiter.train.trajectory import TrajectoryItem
from tests.formats.generated import json_values, messages
from tests.formats.test_refusals import GOOD

TEXTUAL = (
    "openai-chat",
    "openai-dpo",
    "trl-messages",
    "trl-prompt-completion",
    "trl-preference",
    "trl-unpaired",
    "sharegpt",
    "alpaca",
)
KEYS = [
    *("messages", "tools", "parallel_tool_calls", "input", "preferred_output", "prompt"),
    *("non_preferred_output", "completion", "chosen", "rejected", "label", "conversations"),
    *("system", "score_chosen", "reward", "step", "episode_id", "chat_template_kwargs", "weight"),
    *("role", "content", "from", "value", "tool_calls", "function", "arguments", "name", "id"),
    *("tool_call_ids", "reasoning_content", "type", "text", "instruction", "output", "kto_tag"),
    *("function_call", "functions", "rejected_response", "joined_messages", "messages_after"),
]
WORDS = ["user", "assistant", "tool", "human", "gpt", "function_call", "observation", "[]", "{}"]
values = st.recursive(
    json_values | st.sampled_from(WORDS) | messages(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
rows = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)


def read_all(data: bytes, name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        with suppress(TrainError):
            list(read(path, name))
        assert check(path, name).format == name


@pytest.mark.parametrize("name", TEXTUAL)
@settings(max_examples=30)
@given(data=st.binary(max_size=200))
def test_bytes_never_give_a_foreign_error(data: bytes, name: str) -> None:
    read_all(data, name)


@pytest.mark.parametrize("name", TEXTUAL)
@settings(max_examples=50)
@given(given=st.lists(rows, min_size=1, max_size=3), array=st.booleans())
def test_json_never_gives_a_foreign_error(
    given: list[dict[str, object]], array: bool, name: str
) -> None:
    text = json.dumps(given) if array else "\n".join(map(json.dumps, given))
    read_all(text.encode(), name)


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RICH: dict[str, dict[str, object]] = {
    **GOOD,
    "openai-chat": {
        "system": "s",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image"}]},
            {"role": "assistant", "content": "x", "tool_calls": [CALL], "weight": 1},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
            {"role": "tool_call", "content": [{"name": "f", "arguments": {}}]},
            {"role": "tool", "content": "5", "name": "f", "tool_call_id": "c"},
            {"role": "assistant", "content": None, "function_call": {"name": "f"}},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "d", "name": "f"}]},
            {"role": "assistant", "content": "y", "reasoning": "z"},
        ],
        "tools": [{"name": "f", "input_schema": {}}, {"type": "function", "function": {}}],
        "rejected_response": [{"role": "assistant", "content": "no"}],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "q", "joined_messages": [{"role": "user", "content": "q"}]},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": '["1", "2"]', "tool_call_ids": ["a", "b"]},
            {"from": "gpt", "value": "<think>\nx\n</think>\n\ny", "weight": 0},
        ],
        "messages_after": [{"role": "user", "content": "thanks"}],
        "tools": "[]",
        "kto_tag": True,
    },
    "alpaca": {**GOOD["alpaca"], "history": [["q", "a"]], "system": "s", "kto_tag": True},
}
WRONG: list[Any] = [
    None,
    [],
    {},
    "",
    "x",
    0,
    -1,
    1.5,
    True,
    [1],
    [[]],
    [{}],
    {"a": 1},
    {"type": []},
    "[",
    "{}",
]


def paths(value: object, at: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Yield the path of every value inside a row."""
    if at:
        yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    for key, inner in pairs:
        if isinstance(inner, dict | list):
            yield from paths(inner, (*at, key))
        else:
            yield (*at, key)


@pytest.mark.parametrize("name", sorted(RICH.keys() & {*TEXTUAL, "atif", "otel"}))
@settings(max_examples=80)
@given(data=st.data())
def test_a_row_with_wrong_values_never_gives_a_foreign_error(
    data: st.DataObject, name: str
) -> None:
    row: Any = copy.deepcopy(RICH[name])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(paths(row), key=repr)))
        holder = row
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(WRONG)))
        elif isinstance(holder, dict):
            del holder[path[-1]]
        if not row:
            break
    read_all(json.dumps(row).encode() + b"\n", name)


@pytest.mark.parametrize("name", ["parquet", "openai-chat", "trl-preference", "sharegpt"])
@settings(max_examples=30)
@given(data=st.data())
def test_a_damaged_file_never_gives_a_foreign_error(data: st.DataObject, name: str) -> None:
    items = [TrajectoryItem("s", "a", 1.0), TrajectoryItem("s", "b", 0.0, {"x": [1]})]
    with TemporaryDirectory() as folder:
        write(items, Path(folder) / "file", name)
        whole = bytearray((Path(folder) / "file").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    read_all(bytes(whole[: data.draw(st.integers(0, len(whole)))]), name)


@settings(max_examples=50)
@given(data=st.binary(max_size=100) | rows.map(lambda row: json.dumps(row).encode()))
def test_detection_answers_or_says_that_it_cannot_tell(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        with suppress(DataError):
            assert detect(path).name


@pytest.mark.parametrize(
    "damaged", ["dataset_info.json", "state.json", "data-00000-of-00001.arrow"]
)
@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff\x00", None])
def test_a_damaged_folder_gives_an_error_of_ours(
    damaged: str, data: bytes | None, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    write([TrajectoryItem("s", "a")], folder, "datasets")
    if data is None:
        (folder / damaged).unlink()
    else:
        (folder / damaged).write_bytes(data)
    if (damaged, data) == ("dataset_info.json", b"{}"):
        assert len(list(read(folder, "datasets"))) == 1  # all that it says can be found out
        return
    with pytest.raises(DataError, match="set:1: "):
        list(read(folder, "datasets"))


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"messages":' + "[" * 100_000, '{"messages": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize("name", ["openai-chat", "sharegpt"])
def test_nests_and_numbers_without_end_are_refused(line: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=r"x\.jsonl:1: "):
        list(read(path, name))


@pytest.mark.parametrize("depth", [600, 100_000])
def test_arguments_nested_deeper_than_json_readers_go_stay_a_text(
    depth: int, tmp_path: Path
) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": deep}}
    chat = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(chat))
    assert check(path, "openai-chat").ok
    (item,) = read(path, "openai-chat")
    assert item.tool_calls == [call]
    write([item], tmp_path / "again.jsonl", "openai-chat")
    assert list(read(tmp_path / "again.jsonl", "openai-chat")) == [item]
