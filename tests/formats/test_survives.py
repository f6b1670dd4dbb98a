"""Each format's list of surviving fields is exact: those come back, and all others are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.formats import ExportReport, format_of, read, write
from orbiter.train.formats.sharegpt import TEXT_BESIDE_CALL
from orbiter.train.trajectory.item import NAMES
from orbiter.train.trajectory.left_out import Left

FORMATS = (
    "jsonl",
    "json",
    "csv",
    "parquet",
    "datasets",
    "openai-chat",
    "openai-dpo",
    "trl-messages",
    "trl-prompt-completion",
    "trl-preference",
    "trl-unpaired",
    "sharegpt",
    "verl",
)
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
METADATA: dict[str, Any] = {
    "reasoning": "add them",
    "answer": {"name": "solver"},
    "messages_after": [{"role": "user", "content": "thanks"}],
    "parallel_tool_calls": True,
    "chat_template_kwargs": {"enable_thinking": True},
    "mine": 1,
}
FULL: dict[str, Any] = {
    "state": "not what the messages say",
    "action": 'Let me.\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
    "reward": 0.75,
    "metadata": METADATA,
    "task_id": "t",
    "episode_id": "e",
    "step": 7,
    "agent": "solver",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
    "tool_calls": [CALL],
    "done": True,
    "timestamp": 1.5,
    "prompt_token_ids": [1],
    "token_ids": [2],
    "logprobs": [-0.5],
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_listed_fields_come_back_and_the_others_are_reported(name: str, tmp_path: Path) -> None:
    full = TrajectoryItem(**FULL)
    rival = TrajectoryItem(**{**FULL, "action": "2", "tool_calls": None, "reward": 0.25})
    items = [full, rival] if name in {"openai-dpo", "trl-preference"} else [full]
    report = write(items, tmp_path / "file", name)
    back = next(item for item in read(tmp_path / "file", name) if item.action == full.action)

    survives = format_of(name).survives
    entries = {f"metadata.{key}" for key in METADATA}
    came_back = {field for field in NAMES if getattr(back, field) == getattr(full, field)}
    came_back |= {entry for entry in entries if back.metadata.get(entry[9:]) == METADATA[entry[9:]]}
    wanted = survives | (entries if "metadata" in survives else set())
    assert came_back == wanted
    unread = {TEXT_BESIDE_CALL} if name == "sharegpt" else set()
    assert set(report.left_out) == set(NAMES) - survives | unread
    assert report.written == len(items)


@pytest.mark.parametrize("name", FORMATS)
def test_a_state_without_messages_survives(name: str, tmp_path: Path) -> None:
    items = [TrajectoryItem("1+1?", "2", 1.0), TrajectoryItem("1+1?", "3", 0.0)]
    report = write(items, tmp_path / "file", name)
    assert [item.state for item in read(tmp_path / "file", name)] == ["1+1?", "1+1?"]
    assert set(report.left_out) <= {"reward"}


def test_a_field_that_says_nothing_is_not_left_out() -> None:
    left = Left()
    left.note(TrajectoryItem("s", "", metadata={}, messages=[]), carried={"state"})
    left.note(TrajectoryItem("s", "", 0.0, step=0, done=False), carried={"state", "done"})
    assert left == {"reward": 1, "step": 1}


def test_the_report_names_what_was_left_out_and_how_often(tmp_path: Path) -> None:
    items = [TrajectoryItem("s", "a", 1.0), TrajectoryItem("s", "b", 0.0, task_id="t")]
    report = write(items, tmp_path / "x.jsonl", "openai-chat")
    assert str(report) == (
        f"2 items written to {tmp_path / 'x.jsonl'}; left out, with how many items had it: "
        "reward (2), task_id (1)"
    )
    assert str(ExportReport(1, {})) == "1 items written; nothing left out"


def test_items_that_a_pair_has_no_place_for_are_reported(tmp_path: Path) -> None:
    items = [TrajectoryItem("s", "a", 1.0), TrajectoryItem("s", "b", 0.0), TrajectoryItem("t", "c")]
    report = write(items, tmp_path / "x.jsonl", "trl-preference")
    assert (report.written, report.left_out) == (2, {"items in no pair": 1})
    report = write(items, tmp_path / "x.jsonl", "trl-unpaired")
    assert (report.written, report.left_out) == (2, {"items without a reward": 1})


@pytest.mark.parametrize("name", ["trl-prompt-completion", "trl-unpaired"])
def test_items_without_a_prompt_are_reported(name: str, tmp_path: Path) -> None:
    items = [TrajectoryItem("", "Hello.", 1.0, messages=[]), TrajectoryItem("s", "a", 1.0)]
    report = write(items, tmp_path / "x.jsonl", name)
    assert (report.written, report.left_out) == (1, {"items without a prompt": 1})
    assert [item.action for item in read(tmp_path / "x.jsonl", name)] == ["a"]


def test_an_empty_answer_is_never_written_as_a_good_one(tmp_path: Path) -> None:
    items = [TrajectoryItem("s", "", 1.0), TrajectoryItem("s", "b", 0.0)]
    report = write(items, tmp_path / "x.jsonl", "trl-unpaired")
    assert (report.written, report.left_out) == (1, {"items whose good answer is empty": 1})
    for name in ("trl-preference", "openai-dpo"):
        report = write(items, tmp_path / "x.jsonl", name)
        assert (report.written, report.left_out) == (0, {"items in no pair": 2})
