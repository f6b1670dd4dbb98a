from __future__ import annotations

import json
from pathlib import Path

import pytest

from orbiter.train.demo.by_doing import QUICK, Directory, Sizes, lessons, make_parts, run
from orbiter.train.runlog import read_run


def test_no_person_is_in_two_parts_and_parts_follow_the_seed() -> None:
    parts = make_parts(Sizes(), seed=1)
    people = [task["person"] for part in parts for task in part]
    assert len(set(people)) == len(people) == 6 + 60 + 24
    assert make_parts(Sizes(), seed=1) == parts
    assert make_parts(Sizes(), seed=2) != parts


def test_the_lessons_solve_their_tasks_in_three_turns() -> None:
    (task,) = make_parts(Sizes(shown=1), seed=0).shown
    first, second, last = lessons([task])
    assert task["person"] in first.action
    assert task["team"] in second.action
    assert last.action == task["room"]
    assert last.messages is not None
    assert f"room {task['room']}" in str(last.messages[-1]["content"])


@pytest.mark.parametrize(("said", "reward"), [("412", 1), ("412.", 1), ("Room 412", 0.5), ("4", 0)])
def test_only_the_room_alone_is_worth_everything(said: str, reward: float) -> None:
    world = Directory()
    world.reset("Ada Brandt", "Amber", "412")
    assert world.look_up("Amber") == world.look_up("team Amber") == "team Amber: room 412"
    assert "nothing is known" in world.look_up("Ben")
    assert world.on_answer(said) is None
    assert world.get_reward() == reward


@pytest.mark.slow
async def test_a_quick_run_leaves_exams_curves_and_a_report(tmp_path: Path) -> None:
    await run(QUICK, tmp_path, seed=0)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["gain"]["n"] == QUICK.held_out
    assert read_run(tmp_path / "by-doing").metrics[0]["turns"] >= 1
    page = (tmp_path / "report.html").read_text()
    assert "An agent with a tool learns by doing" in page
