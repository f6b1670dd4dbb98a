"""What is written as ShareGPT is what LLaMA-Factory reads; the rest is left out and reported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from orbiter.train import TrajectoryItem
from orbiter.train.chat.conversation import items_of
from orbiter.train.formats import read, write
from orbiter.train.formats.sharegpt import NOT_TEXT, TEXT_BESIDE_CALL, UNWEIGHTED
from tests.formats.generated import several_chats

Json = Any
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "1 + 1?"}
ANSWER = {"role": "assistant", "content": "2"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}


def examples_of(row: Mapping[str, Json]) -> list[tuple[str, str]]:
    """The turns that LLaMA-Factory 0.9 learns from a row, by its documented rules; [] if none.

    Questions and answers alternate, beginning with a question and ending with an answer; a system
    turn may come first; a call is JSON with a name and arguments.
    """
    turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
    if turns and turns[0][0] == "system":
        turns = turns[1:]
    if len(turns) % 2:
        return []
    for index, (speaker, value) in enumerate(turns):
        if speaker not in (("human", "observation"), ("gpt", "function_call"))[index % 2]:
            return []
        if speaker == "function_call":
            spoken = value.rpartition("</think>\n\n")[2]
            calls = json.loads(spoken)
            for call in calls if isinstance(calls, list) else [calls]:
                assert isinstance(call["name"], str)
                json.dumps(call["arguments"])
    return turns


def rows_of(items: Sequence[TrajectoryItem], tmp_path: Path) -> tuple[list[Json], Any]:
    report = write(items, tmp_path / "x.jsonl", "sharegpt")
    return [json.loads(line) for line in (tmp_path / "x.jsonl").read_bytes().splitlines()], report


def chat(*messages: Json, answers: Sequence[int] | None = None) -> list[TrajectoryItem]:
    return list(items_of(messages, answers=answers, episode_id="e"))


def test_an_episode_with_calls_is_read_and_comes_back(tmp_path: Path) -> None:
    items = chat(SYSTEM, USER, CALLED, RESULT, ANSWER)
    rows, report = rows_of(items, tmp_path)
    (row,) = rows
    assert [speaker for speaker, _ in examples_of(row)] == [
        "human", "function_call", "observation", "gpt",
    ]  # fmt: skip
    assert report.left_out == {"episode_id": 2, "step": 2}
    back = list(read(tmp_path / "x.jsonl"))
    assert [(item.action, item.messages) for item in back] == [
        (item.action, item.messages) for item in items
    ]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, {"role": "user", "content": "Well?"}, ANSWER], "1 + 1?\n\nWell?"),
        ([USER, {"role": "user", "content": "", "name": "me"}, ANSWER], "1 + 1?\n\n"),
        ([USER, USER, USER, ANSWER], "1 + 1?\n\n1 + 1?\n\n1 + 1?"),
    ],
)
def test_user_messages_in_a_row_share_a_turn_and_come_back(
    messages: list[Json], words: str, tmp_path: Path
) -> None:
    items = chat(*messages)
    (row,), report = rows_of(items, tmp_path)
    assert examples_of(row) == [("human", words), ("gpt", "2")]
    assert report.left_out == {}
    (back,) = read(tmp_path / "x.jsonl")
    assert back.messages == items[0].messages


@pytest.mark.parametrize("name", [{}, {"name": "add"}])
def test_results_in_a_row_share_a_turn_and_come_back(name: Json, tmp_path: Path) -> None:
    second = {**CALL, "id": "c2"}
    called = {**CALLED, "tool_calls": [CALL, second]}
    items = chat(USER, called, {**RESULT, **name}, {**RESULT, "tool_call_id": "c2"}, ANSWER)
    (row,), _ = rows_of(items, tmp_path)
    assert examples_of(row)[2] == ("observation", '["2", "2"]')
    assert [item.messages for item in read(tmp_path / "x.jsonl")] == [i.messages for i in items]


def test_what_follows_the_last_answer_is_not_a_turn(tmp_path: Path) -> None:
    items = chat(USER, ANSWER, {"role": "user", "content": "thanks"})
    (row,), report = rows_of(items, tmp_path)
    assert examples_of(row) == [("human", "1 + 1?"), ("gpt", "2")]
    assert report.left_out == {}
    (back,) = read(tmp_path / "x.jsonl")
    assert back.metadata == items[0].metadata


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER, CALLED, RESULT, USER, ANSWER], "a user turn after a tool result"),
        ([USER, ANSWER, SYSTEM, USER, ANSWER], "a system message that is not the first"),
        ([USER, SYSTEM, ANSWER], "a system message that is not the first"),
        ([ANSWER, USER, ANSWER], "an answer at the beginning"),
        ([SYSTEM, ANSWER], "an answer at the beginning"),
        ([USER, ANSWER, ANSWER], "two answers in a row"),
        ([USER, ANSWER, CALLED], "two answers in a row"),
        ([USER, RESULT, ANSWER], "a tool result after a user turn"),
        ([USER], "no answer to learn"),
    ],
)
def test_a_conversation_that_would_be_skipped_is_left_out_by_name(
    messages: list[Json], problem: str, tmp_path: Path
) -> None:
    items = chat(*messages)
    good = chat(USER, ANSWER)
    rows, report = rows_of([*good, *items], tmp_path)
    assert [bool(examples_of(row)) for row in rows] == [True]
    name = f"items of conversations that LLaMA-Factory skips: {problem}"
    assert report.left_out[name] == len(items)
    assert report.written == 1
    (detail,) = report.details
    assert problem in detail
    assert items[0].id in detail
    assert problem in str(report)


def test_what_a_reader_does_not_read_is_counted(tmp_path: Path) -> None:
    beside = {**CALLED, "content": "I add."}
    (row,), report = rows_of(chat(USER, beside, RESULT, ANSWER), tmp_path)
    assert examples_of(row)
    assert report.left_out[TEXT_BESIDE_CALL] == 1
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    _, report = rows_of(chat({"role": "user", "content": [image]}, ANSWER), tmp_path)
    assert report.left_out == {NOT_TEXT: 1}
    _, report = rows_of(chat(USER, ANSWER, USER, ANSWER, answers=[3]), tmp_path)
    assert report.left_out == {UNWEIGHTED: 1}


@pytest.mark.parametrize(
    "arguments", ["[1]", "NaN", "hello", '"hello"', '{"a": NaN}', '{"a": 1, "a": 2}', "", "{", "5"]
)
@pytest.mark.parametrize("kind", ["function", "custom"])
def test_a_call_with_any_arguments_is_one_that_llamafactory_reads(
    kind: str, arguments: str, tmp_path: Path
) -> None:
    call: Json = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    if kind == "custom":
        call = {"id": "c1", "type": "custom", "custom": {"name": "f", "input": arguments}}
    items = chat(USER, {**CALLED, "tool_calls": [call]}, RESULT, ANSWER)
    (row,), _ = rows_of(items, tmp_path)
    assert examples_of(row)
    assert [item.tool_calls for item in read(tmp_path / "x.jsonl")] == [[call], None]


@settings(max_examples=60)
@given(items=several_chats)
def test_every_written_row_is_read_and_every_other_is_reported(
    items: list[TrajectoryItem], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("x")
    rows, report = rows_of(items, folder)
    assert all(examples_of(row) for row in rows)
    assert len(list(read(folder / "x.jsonl", "sharegpt")) if rows else []) == report.written
    skipped = sum(count for name, count in report.left_out.items() if "skips: " in name)
    assert report.written + skipped == len(items)
    assert bool(skipped) == bool(report.details)
