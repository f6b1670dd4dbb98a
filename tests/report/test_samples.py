from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from orbiter.train.errors import StorageError
from orbiter.train.report.samples import SampleGroups
from orbiter.train.report.shown import OUTPUTS, SHOWN, cut, group_for_page
from tests.report.folders import training

ROOM = 10**9


def read(folder: Path) -> SampleGroups:
    samples = SampleGroups(folder / "samples.jsonl")
    samples.read_on()
    return samples


def test_a_short_run_is_shown_whole_and_in_order(tmp_path: Path) -> None:
    groups = read(training(tmp_path, steps=4)).chosen(max_bytes=ROOM)
    assert [group["step"] for group in groups] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_of_a_long_run_first_last_best_worst_changed_and_an_even_sample_are_shown(
    tmp_path: Path,
) -> None:
    samples = read(training(tmp_path, steps=400))
    groups = samples.chosen(max_bytes=ROOM)
    assert len(groups) == SHOWN
    means = [fact.reward or 0.0 for fact in samples.facts]
    why = {kind: [g for g in groups if kind in g["why"]] for kind in ("best", "worst", "changed")}
    assert groups[0]["step"] == 1
    assert groups[-1]["step"] == 400
    shown = [sum(o["reward"] for o in g["outputs"]) / 4 for g in groups]
    assert max(shown) == pytest.approx(max(means))
    assert min(shown) == pytest.approx(min(means))
    assert len(why["best"]) == len(why["worst"]) == 36
    assert 20 < len(why["changed"]) <= 60
    steps = sorted({group["step"] for group in groups})
    assert max(b - a for a, b in pairwise(steps)) < 20


def test_most_changed_means_the_prompt_whose_reward_moved_most(tmp_path: Path) -> None:
    rewards = {"still": (0.5, 0.5), "up": (0.0, 1.0), "a little": (0.5, 0.6), "once": (0.1,)}
    rows = [
        {"step": step, "prompt": prompt, "completion": "x", "reward": reward}
        for prompt, seen in rewards.items()
        for step, reward in enumerate(seen)
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "samples.jsonl").write_text("".join(line + "\n" for line in lines))
    groups = read(tmp_path).chosen(max_bytes=ROOM)
    assert [g["prompt"] for g in groups if "changed" in g["why"]] == ["up"]


def test_where_bytes_run_out_some_of_every_kind_are_left(tmp_path: Path) -> None:
    groups = read(training(tmp_path, steps=200)).chosen(max_bytes=30_000)
    assert len(json.dumps(groups)) < 33_000
    assert {why for group in groups for why in group["why"]} == {
        *("first", "last", "best", "worst", "changed", "even")
    }


def test_a_file_that_grows_is_read_on_and_one_that_was_cut_anew(tmp_path: Path) -> None:
    path = training(tmp_path, steps=5) / "samples.jsonl"
    samples = read(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    samples.read_on()
    half = len(samples.facts)
    assert 15 < half < 30
    path.write_bytes(whole + whole)
    samples.read_on()
    assert [f.step for f in samples.facts] == _steps(whole) * 2
    path.write_bytes(whole)
    samples.read_on()
    assert len(samples.facts) == 15
    assert len(samples.chosen(max_bytes=ROOM)) == 15


def _steps(lines: bytes) -> list[int]:
    return [json.loads(line)["step"] for line in lines.splitlines()]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = training(tmp_path, steps=1) / "samples.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 2, "outputs": 3}\n')
    with pytest.raises(StorageError, match=r"samples\.jsonl:4 is not a sample"):
        read(tmp_path)


def test_long_texts_are_cut_and_of_many_outputs_the_extremes_are_kept() -> None:
    outputs = [{"text": "a" * 9_000, "reward": float(i)} for i in range(100)]
    group = group_for_page({"step": 1, "prompt": "p" * 9_000, "outputs": outputs})
    assert len(group["outputs"]) == OUTPUTS
    assert group["left_out"] == 100 - OUTPUTS
    assert [group["outputs"][0]["reward"], group["outputs"][-1]["reward"]] == [99.0, 0.0]
    assert "7000 characters more are in the run's folder" in group["prompt"]
    assert cut("abc", 3) == "abc"


def test_a_sample_noted_alone_is_a_group_of_one() -> None:
    group = group_for_page({"step": 1, "prompt": "p", "completion": "c", "reward": None})
    assert group["outputs"] == [{"text": "c", "reward": None, "rewards": {}}]


def test_a_chat_keeps_its_turns_and_calls() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    group = group_for_page({"step": 1, "prompt": "p", "messages": messages, "outputs": []})
    assert group["messages"][1] == {
        "role": "assistant",
        "text": "",
        "calls": [{"name": "find", "arguments": '{"a": 1}'}],
    }
    assert "hi" in group["messages"][0]["text"]
