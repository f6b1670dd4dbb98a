from __future__ import annotations

import json
from pathlib import Path

import pytest

from orbiter.train.demo.guessing import (
    EXAM_SEEDS,
    QUICK,
    Guessing,
    Sizes,
    lessons,
    make_course,
    run,
)
from orbiter.train.runlog import read_run

pytest.importorskip("textarena", reason="textarena is not installed: pip install textarena")


def won(seed: int, guesses: list[str]) -> float:
    game = Guessing()
    game.reset(seed)
    for guess in guesses:
        assert not game.done
        game.on_answer(guess)
    return game.get_reward()


def the_number(seed: int) -> int:
    return next(n for n in range(1, 21) if won(seed, [f"[{n}]"]))


def test_only_the_number_itself_wins_also_in_the_last_guess() -> None:
    number = the_number(3)
    wrong = [n for n in range(1, 21) if n != number]
    assert won(3, [f"[{n}]" for n in [*wrong[:5], number]]) == 1
    assert won(3, [f"[{n}]" for n in wrong[:6]]) == 0
    assert won(3, ["[0]", "no number"]) == 0  # two invalid moves in a row end it
    assert won(3, ["[0]", f"My guess: [{number}]"]) == 1
    assert won(3, [f"[{wrong[0]}]"]) == 0  # not finished


def test_the_lessons_win_their_games_and_heed_the_hints() -> None:
    items = lessons(4, seed=0)
    games = {
        item.task_id: [other for other in items if other.task_id == item.task_id] for item in items
    }
    assert len(games) == 4
    for name, turns in games.items():
        assert won(int(str(name).split()[-1]), [turn.action for turn in turns]) == 1
        last = list(turns[-1].messages or ())
        for guess, hint in zip(last[1::2], last[2::2], strict=True):
            step = int(str(turns[-1].action).strip("[]")) - int(str(guess["content"]).strip("[]"))
            assert ("higher" if step > 0 else "lower") in str(hint["content"])


def test_no_game_of_the_exam_is_played_before_it_and_games_follow_the_seed() -> None:
    course = make_course(Sizes(), seed=1)
    assert min(task["seed"] for task in course.held_out) >= EXAM_SEEDS
    assert max(task["seed"] for task in course.tasks) < EXAM_SEEDS
    assert make_course(Sizes(), seed=1).tasks == course.tasks
    assert make_course(Sizes(), seed=2).tasks != course.tasks
    numbers = {the_number(task["seed"]) for task in course.held_out}
    assert len(numbers) > 12  # of 20


@pytest.mark.slow
async def test_a_quick_run_leaves_exams_curves_and_a_report(tmp_path: Path) -> None:
    await run(QUICK, tmp_path, seed=0)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["gain"]["n"] == QUICK.held_out
    assert read_run(tmp_path / "by-doing").metrics[0]["turns"] >= 1
    assert "A game of textarena" in (tmp_path / "report.html").read_text()
