from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orbiter.train.demo.account import Account
from orbiter.train.demo.outcome import Outcome
from orbiter.train.demo.pipeline import (
    Run,
    capture,
    curate,
    run_demo,
    split_requests,
    without_lesson,
)
from orbiter.train.demo.plan import QUICK, Plan
from orbiter.train.demo.requests import ToolRequest
from orbiter.train.errors import StorageError


def an_account() -> Account:
    return Account(Outcome(), Console(file=io.StringIO(), width=100))


def test_no_function_of_the_held_out_part_is_seen_in_training(requests: list[ToolRequest]) -> None:
    names = {request.id: request.function.name for request in requests}
    parts = split_requests(requests, Plan())
    homes = Counter[str]()
    for part in parts:
        homes.update({names[str(item.task_id)] for item in part})
    assert set(homes.values()) == {1}
    assert [len(part) for part in parts] == [200, 88, 112]


def test_the_split_follows_the_seed(requests: list[ToolRequest]) -> None:
    assert split_requests(requests, Plan()) == split_requests(requests, Plan())
    assert split_requests(requests, Plan(seed=1)) != split_requests(requests, Plan())


@pytest.mark.slow
async def test_only_right_traces_become_lessons(
    requests: list[ToolRequest], tmp_path: Path
) -> None:
    plan = QUICK
    run = Run(plan, tmp_path, an_account(), {request.id: request for request in requests})
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
    outcome = await run_demo(replace(QUICK, control=True), tmp_path, account)
    account.summary()
    assert list(outcome.exams) == ["before", "sft", "grpo", "further sft"]
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert "A small agent learns" in (tmp_path / "report.html").read_text()
    kept = json.loads((tmp_path / "result.json").read_bytes())
    assert kept["exams"]["grpo"]["right"] == outcome.exams["grpo"].right
    assert isinstance(account.console.file, io.StringIO)
    assert str(tmp_path / "model") in account.console.file.getvalue().replace("\n", "")


async def test_a_run_never_writes_into_another_ones_folder(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("")
    with pytest.raises(StorageError, match="needs a folder of its own"):
        await run_demo(QUICK, tmp_path, an_account())


def test_a_plan_is_fixed() -> None:
    with pytest.raises(AttributeError):
        Plan().seed = 1  # type: ignore[misc] # that it cannot be set is the claim
