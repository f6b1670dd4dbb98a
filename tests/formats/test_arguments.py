"""The arguments of a call come back as the model wrote them, whatever they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.chat.conversation import item_of
from orbiter.train.formats import from_dataset, read, to_dataset, write

FORMATS = (
    *("jsonl", "json", "csv", "parquet", "journal", "datasets", "verl", "atif"),
    *("openai-chat", "trl-messages", "trl-prompt-completion", "sharegpt"),
)
ODD = (
    *("[1]", "NaN", "Infinity", "hello", '"hello"', "5", "null", "true", "", " ", "{", "}{", "{}x"),
    *('{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', "{'a': 1}", '{"a":1}}'),
    "<tool_call>{}</tool_call>",
)
PROMPT = [{"role": "user", "content": "Add."}]


def calls(arguments: str) -> list[dict[str, Any]]:
    return [
        {"id": f"c{k}", "type": "function", "function": {"name": "add", "arguments": arguments}}
        for k in range(2)
    ]


def item(arguments: str) -> TrajectoryItem:
    answer = {"role": "assistant", "content": None, "tool_calls": calls(arguments)}
    return item_of(PROMPT, answer)


@pytest.mark.parametrize("name", FORMATS)
def test_arguments_that_are_no_object_come_back_unchanged(name: str, tmp_path: Path) -> None:
    given = [item(arguments) for arguments in ODD]
    write(given, tmp_path / "file", name)
    back = list(read(tmp_path / "file", name))
    assert [(each.action, each.tool_calls) for each in back] == [
        (each.action, each.tool_calls) for each in given
    ]


@pytest.mark.parametrize("name", ["openai-chat", "trl-messages", "sharegpt"])
def test_arguments_come_back_from_a_data_set_in_memory(name: str) -> None:
    given = [item(arguments) for arguments in ODD]
    back = list(from_dataset(to_dataset(given, name)))
    assert [each.tool_calls for each in back] == [each.tool_calls for each in given]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("arguments", ['{"a":1,"b":[{"c":null}]}', '{"a": 1.0, "b": "\\u00e9"}'])
def test_an_object_comes_back_as_the_same_json(name: str, arguments: str, tmp_path: Path) -> None:
    given = item(arguments)
    write([given], tmp_path / "file", name)
    (back,) = read(tmp_path / "file", name)
    assert back.tool_calls is not None
    texts: list[Any] = [call["function"] for call in back.tool_calls]
    assert [json.loads(text["arguments"]) for text in texts] == [json.loads(arguments)] * 2
    assert back.action == given.action


@pytest.mark.parametrize("given", [5, True, [1, None], {"a": 1}, None])
def test_arguments_that_a_file_holds_as_json_become_text(given: object, tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": given}}
    row = {"messages": [*PROMPT, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    (back,) = read(tmp_path / "x.jsonl")
    made: Any = back.tool_calls
    wanted = "{}" if given is None else json.dumps(given)
    assert made[0]["function"]["arguments"] == wanted
