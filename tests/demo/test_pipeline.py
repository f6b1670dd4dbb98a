from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orbiter.train.demo.account import Account
from orbiter.train.demo.outcome import DemoOutcome
from orbiter.train.demo.parts import draw, further_requests, split_requests
from orbiter.train.demo.pipeline import (
    DemoRun,
    capture,
    curate,
    open_run,
    run_demo,
    without_lesson,
)
from orbiter.train.demo.plan import MIN_STEPS, QUICK, DemoPlan, estimate
from orbiter.train.demo.requests import ToolRequest
from orbiter.train.demo.state import DemoState, open_state, unfinished
from orbiter.train.errors import StorageError


def an_account() -> Account:
    return Account(DemoOutcome(), Console(file=io.StringIO(), width=100))


def test_no_function_of_the_held_out_part_is_seen_in_training(requests: list[ToolRequest]) -> None:
    names = {request.id: request.function.name for request in requests}
    parts = split_requests(requests, DemoPlan())
    homes = Counter[str]()
    for part in parts:
        homes.update({names[str(item.task_id)] for item in part})
    assert set(homes.values()) == {1}
    assert [len(part) for part in parts] == [200, 88, 112]


def test_the_split_follows_the_seed(requests: list[ToolRequest]) -> None:
    assert split_requests(requests, DemoPlan()) == split_requests(requests, DemoPlan())
    assert split_requests(requests, DemoPlan(seed=1)) != split_requests(requests, DemoPlan())


@pytest.mark.slow
async def test_only_right_traces_become_lessons(
    requests: list[ToolRequest], tmp_path: Path
) -> None:
    plan = QUICK
    by_id = {request.id: request for request in requests}
    run = DemoRun(plan, tmp_path, an_account(), by_id, DemoState(plan, dtype="float32"))
    parts = split_requests(requests[:100], plan)
    traces = await capture(run, parts)
    lessons = curate(run, traces)
    assert run.outcome.counts["wrong traces"] == round(len(parts.shown) / 4) + plan.own_traces
    assert {item.reward for item in [*lessons.train, *lessons.validation]} == {1.0}
    assert {item.agent for item in lessons.train} == {"reference"}
    left = {item.task_id for item in without_lesson(parts.shown, lessons)}
    answered = {item.task_id for item in traces if item.reward}
    assert left == {item.task_id for item in parts.shown} - answered
    functions = [{i.metadata["function"] for i in part} for part in lessons]
    assert not functions[0] & functions[1]


@pytest.mark.slow
async def test_the_whole_way_leaves_a_page_a_model_and_a_result(
    requests: list[ToolRequest], tmp_path: Path
) -> None:
    account = an_account()
    outcome = await run_demo(open_run(replace(QUICK, control=True), tmp_path, account))
    account.summary()
    assert list(outcome.exams) == ["before", "sft", "grpo", "further sft"]
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert "A small agent learns" in (tmp_path / "report.html").read_text()
    kept = json.loads((tmp_path / "result.json").read_bytes())
    assert kept["exams"]["grpo"]["right"] == outcome.exams["grpo"].right
    assert isinstance(account.console.file, io.StringIO)
    assert str(tmp_path / "model") in account.console.file.getvalue().replace("\n", "")


def test_a_run_never_writes_into_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("")
    with pytest.raises(StorageError, match="holds no run of the demo"):
        open_state(QUICK, tmp_path)


def test_a_run_of_another_plan_is_not_continued(tmp_path: Path) -> None:
    DemoState(QUICK).save(tmp_path)
    with pytest.raises(StorageError, match="other settings"):
        open_state(replace(QUICK, seed=1), tmp_path)


def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"plan": {')
    with pytest.raises(StorageError, match=r"state\.json is damaged"):
        open_state(QUICK, tmp_path)


def test_the_newest_unfinished_run_of_the_plan_is_continued(tmp_path: Path) -> None:
    assert unfinished(QUICK, tmp_path) is None
    DemoState(QUICK, finished=["capture"]).save(tmp_path / "demo-1")
    DemoState(QUICK, finished=["capture", "sft", "grpo", "report"]).save(tmp_path / "demo-2")
    DemoState(replace(QUICK, seed=1)).save(tmp_path / "demo-3")
    assert unfinished(QUICK, tmp_path) == tmp_path / "demo-1"
    # A finished run lacks only the control, once that is asked for.
    assert unfinished(replace(QUICK, control=True), tmp_path) == tmp_path / "demo-2"


def test_a_slow_machine_makes_fewer_steps() -> None:
    exams = (15, 26, 45, 60, 90, 500)
    steps = [estimate(DemoPlan(), exam).steps for exam in exams]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (DemoPlan().grpo_steps, MIN_STEPS)
    for exam in (15, 26, 45, 60):
        assert estimate(DemoPlan(), exam).minutes <= DemoPlan().minutes


def test_the_estimate_before_grpo_counts_the_seconds_already_spent() -> None:
    fresh = estimate(DemoPlan(), 40)
    late = estimate(DemoPlan(), 40, elapsed=700)
    assert late.steps == MIN_STEPS < fresh.steps


def test_no_request_is_attempted_twice_before_all_were_attempted_once(
    requests: list[ToolRequest],
) -> None:
    practice = split_requests(requests, DemoPlan()).own
    few, many = draw(practice, 40, seed=0), draw(practice, 150, seed=0)
    assert len({item.id for item in few}) == len(few) == 40
    assert {item.id for item in many} == {item.id for item in practice}
    assert len(many) == 150
    assert many[:40] == few != draw(practice, 40, seed=1)


def test_no_further_request_is_about_a_held_out_function(
    requests: list[ToolRequest], tmp_path: Path
) -> None:
    plan = DemoPlan()
    held_out = split_requests(requests, plan).held_out
    further = further_requests(open_run(plan, tmp_path, an_account()).requests.values(), held_out)
    functions = [{i.metadata["function"] for i in part} for part in (further, held_out)]
    assert not functions[0] & functions[1]
    assert len(further) > 100


def test_a_plan_is_fixed() -> None:
    with pytest.raises(AttributeError):
        DemoPlan().seed = 1  # type: ignore[misc] # that it cannot be set is the claim
