"""Episodes on the page: turn by turn, siblings side by side; and the page of captured traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import DataError
from orbiter.train.formats.registry import read
from orbiter.train.report import write_report, write_traces
from orbiter.train.report.samples import SampleGroups
from orbiter.train.report.shown import EPISODES, TURNS, group_for_page
from orbiter.train.report.traces import group_records
from orbiter.train.runlog import RunLog
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.codec import encode_item
from tests.report.conftest import Opener
from tests.report.folders import CONFIG
from tests.report.hostile import PAYLOADS

CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"k": "a"}'}}


def turn(number: int, *, words: str = "", reward: float | None = None) -> dict[str, Any]:
    first = [{"role": "system", "content": "Use the tools."}, {"role": "user", "content": "Go on."}]
    later = [{"role": "tool", "tool_call_id": "c1", "content": f"found {number} {words}"}]
    return {
        "asked": later if number else first,
        "answer": {"role": "assistant", "content": f"thinking {number} {words}"}
        | ({} if number else {"content": None, "tool_calls": [CALL]}),
        "tokens": 7,
        "finish_reason": "stop",
        **({} if reward is None else {"reward": reward, "advantage": -0.25}),
    }


def attempt(number: int, *, turns: int = 3, words: str = "", **given: object) -> dict[str, Any]:
    return {
        "text": f"answer {number} {words}",
        "reward": float(number),
        "rewards": {"solved": float(number)},
        "advantage": number - 0.5,
        "tokens": 21,
        "cut_off": False,
        "stop_reason": "done",
        "error": None,
        "turns": [turn(i, words=words, reward=0.5 if i == 1 else None) for i in range(turns)],
    } | given


def run(folder: Path, *, words: str = "", attempts: int = 2, turns: int = 3) -> Path:
    environment = {
        "processor": "Some CPU",
        "instruction_set": "AVX2",
        "threads": 2,
        "dtype": "float32",
    }
    with RunLog(folder, CONFIG, environment=environment) as log:
        for step in range(1, 6):
            metrics = {"reward": 0.1 * step, "turns": 2.5, "failed": 0.25, "tool_calls": 1.0}
            log.write(step, metrics | {"failed/agent_error": 1.0, "stopped/max_turns": 2.0})
            outputs = [attempt(i, words=words, turns=turns) for i in range(attempts)]
            if step == 5:
                failed = {"stop_reason": "agent_error", "error": f"ValueError: {words} down"}
                outputs.append(attempt(9, reward=None, advantage=None, turns=1, **failed))
                outputs.append(attempt(8, stop_reason="max_turns"))
            log.sample(step, {"task": f"t{step}", "prompt": f"Task {step}", "outputs": outputs})
    return folder


def test_long_episodes_and_large_groups_are_shortened_from_the_middle() -> None:
    record = {"step": 1, "prompt": "p", "outputs": [attempt(i, turns=100) for i in range(20)]}
    group = group_for_page(record)
    assert len(group["outputs"]) == EPISODES
    assert group["left_out"] == 20 - EPISODES
    first = group["outputs"][0]
    assert first["turns_in_all"] == 100
    assert [t["number"] for t in first["turns"]] == [
        *range(1, TURNS // 2 + 1),
        *range(101 - TURNS // 2, 101),
    ]
    assert first["turns"][0]["answer"]["calls"] == [
        {"name": "look_up", "arguments": '{"k": "a"}'},
    ]


def test_a_group_larger_than_the_page_is_still_shown(tmp_path: Path) -> None:
    samples = SampleGroups(run(tmp_path / "run", words="x" * 400, turns=30) / "samples.jsonl")
    samples.read_on()
    assert len(samples.chosen(max_bytes=10)) == 1
    assert len(samples.chosen(max_bytes=10_000_000)) == 5


@pytest.mark.slow
def test_the_page_shows_episodes_turn_by_turn_and_side_by_side(
    open_page: Opener, tmp_path: Path
) -> None:
    page = open_page(write_report(run(tmp_path / "run")))
    assert page.locator("#machine").inner_text() == ("Some CPU · AVX2 · 2 threads · float32")
    titles = page.locator("#curves figcaption h3").all_inner_texts()
    for title in ("Turns per episode", "Failures by kind", "Episodes that ran into a limit"):
        assert title in titles
    detail = page.locator("#samples-0-detail")
    assert detail.locator(".episode").count() == 2
    boxes = [box for e in detail.locator(".episode").all() if (box := e.bounding_box())]
    assert boxes[0]["y"] == boxes[1]["y"]  # side by side
    assert boxes[0]["x"] < boxes[1]["x"]
    best = detail.locator(".episode").first
    assert best.locator(".turns > li").count() == 3
    assert "look_up" in best.inner_text()
    assert "found 1" in best.inner_text()
    assert "reward 0.5" in best.locator(".turns > li").nth(1).inner_text()
    assert "advantage \u22120.25" in best.locator(".turns > li").nth(1).inner_text()
    shared = detail.locator("article > .chat")
    assert "Use the tools." in shared.inner_text()
    assert "Use the tools." not in best.inner_text()  # shown once
    page.locator("#samples-0-filter").select_option("with failed episodes")
    assert page.locator("#samples-0-list li").count() == 1
    failed = detail.locator(".episode.failed")
    assert failed.count() == 1
    assert "agent raised" in failed.inner_text()
    assert "ValueError:  down" in failed.inner_text()
    page.locator("#samples-0-filter").select_option("that ran into a limit")
    assert "ran out of turns" in detail.inner_text()
    page.locator("#samples-0-filter").select_option("all")
    page.locator("#samples-0-search").fill("look_up FOUND")
    assert page.locator("#samples-0-list li").count() == 5


@pytest.mark.slow
def test_hostile_texts_in_episodes_stay_text(open_page: Opener, tmp_path: Path) -> None:
    words = "\n".join(PAYLOADS).encode("utf-8", "replace").decode()
    page = open_page(write_report(run(tmp_path / "run", words=words)))
    page.locator("#samples-0-filter").select_option("with failed episodes")
    assert page.locator(".episode script, .episode img, .episode iframe").count() == 0
    assert len(open_page.seen.requests) == 1


@pytest.mark.slow
def test_on_a_phone_the_page_does_not_scroll_sideways(open_page: Opener, tmp_path: Path) -> None:
    path = write_report(run(tmp_path / "run", words="long " * 60))
    page = open_page(path, viewport={"width": 375, "height": 800})
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375


def items(*, episode: str, rewards: list[float | None]) -> list[TrajectoryItem]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "2 + 3?"}]
    steps = []
    for number, reward in enumerate(rewards):
        last = number == len(rewards) - 1
        calls = None if last else [CALL]
        steps.append(
            TrajectoryItem(
                f"user\n2 + 3? {number}",
                "It is 5" if last else '<tool_call>{"name": "look_up", "arguments": {"k": "a"}}',
                reward,
                {"output_tokens": 4, "finish_reason": "stop"},
                task_id="sum",
                episode_id=episode,
                step=number,
                messages=list(messages),
                tool_calls=calls,
            )
        )
        answer: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
        messages += [answer, {"role": "tool", "tool_call_id": "c1", "content": f"result {number}"}]
    return steps


def test_items_become_episodes_of_their_task_with_what_was_new_in_each_turn() -> None:
    first = items(episode="a", rewards=[0.25, None, 1.0])
    second = items(episode="b", rewards=[None])
    alone = TrajectoryItem("hello", "hi", 0.5)
    groups = group_records([first[1], first[0], *second, first[2], alone])
    assert [group.get("task") for group in groups] == ["sum", None]
    outputs = groups[0]["outputs"]
    assert [output["name"] for output in outputs] == ["a", "b"]
    assert [output["reward"] for output in outputs] == [1.0, None]
    turns = outputs[0]["turns"]
    assert [[m["role"] for m in t["asked"]] for t in turns] == [["user"], ["tool"], ["tool"]]
    assert [t["reward"] for t in turns] == [0.25, None, 1.0]
    assert turns[1]["asked"][0]["content"] == "result 0"
    assert turns[0]["answer"]["tool_calls"][0]["function"]["name"] == "look_up"
    assert groups[1]["outputs"][0]["turns"][0]["asked"][-1]["content"] == "hello"


def test_a_file_without_items_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"traces.jsonl holds no items to show"):
        write_traces(tmp_path / "traces.jsonl", [])


@pytest.mark.slow
def test_the_page_of_a_trace_file_shows_its_episodes(open_page: Opener, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    captured = [*items(episode="a", rewards=[0.25, 1.0]), *items(episode="b", rewards=[None])]
    path.write_bytes(b"".join(encode_item(item) + b"\n" for item in captured))
    page = open_page(write_traces(path, read(path)))
    assert page.locator("h1").inner_text() == "traces.jsonl"
    assert page.locator("h2").all_inner_texts() == ["Episodes"]
    assert page.locator(".episode").count() == 2
    assert "result 0" in page.locator(".episode").first.inner_text()
    assert json.loads(page.locator("#data").inner_text())["runs"][0]["traces"] is True
