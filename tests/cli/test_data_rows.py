"""`data show`, `data filter` and `data merge`: success, bad input, exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.cli.options import write_items
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    items = [
        TrajectoryItem(f"s{n}\x1b[2J", f"a{n}", None if n == 3 else n / 2, agent="ab"[n % 2])
        for n in range(4)
    ]
    write_items(items, Path("a.jsonl"))
    Path("b.json").write_text('[{"state": "t", "action": "u", "reward": 1}]')


def rewards(file: str) -> list[float | None]:
    return [json.loads(line).get("reward") for line in Path(file).read_text().splitlines()]


def test_show_prints_items_in_full_and_escapes_control_characters(run: Run) -> None:
    ran = run("data", "show", "a.jsonl", "-n", "2", "--skip", "1")
    assert ran.code == 0
    assert "row 1: reward 0.5" in ran.out
    assert "    s2\\x1b[2J" in ran.out
    assert "\x1b" not in ran.out
    assert "2 of 4 items" in ran.out


def test_filter_keeps_what_meets_every_condition(run: Run) -> None:
    ran = run("data", "filter", "a.jsonl", "--min-reward", "0.5", "--agent", "b", "-o", "x.jsonl")
    assert (ran.code, rewards("x.jsonl")) == (0, [0.5])
    assert run("data", "filter", "a.jsonl", "--agent", "b", "-o", "y.jsonl").code == 0
    assert len(rewards("y.jsonl")) == 2


def test_merge_puts_files_of_any_format_together(run: Run) -> None:
    ran = run("data", "merge", "a.jsonl", "b.json", "-o", "x.jsonl", "--json")
    assert (ran.code, json.loads(ran.out)["items"]) == (0, 5)
    assert rewards("x.jsonl")[-1] == 1.0


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, ["filter", "a.jsonl", "-o", "x.jsonl"], "give a condition"),
        (2, ["filter", "a.jsonl", "--agent", "b", "-o", "a.jsonl"], "names the input file"),
        (3, ["filter", "a.jsonl", "--agent", "z", "-o", "x.jsonl"], "none of the 4 items"),
        (2, ["merge", "a.jsonl", "-o", "x.jsonl"], "at least two files"),
        (2, ["merge", "a.jsonl", "b.json", "-o", "b.json"], "names the input file"),
        (6, ["merge", "a.jsonl", "gone.jsonl", "-o", "x.jsonl"], "gone.jsonl"),
        (6, ["show", "gone.jsonl"], "gone.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_its_code(
    run: Run, code: int, words: list[str], message: str
) -> None:
    ran = run("data", *words)
    assert (ran.code, message in ran.err) == (code, True), ran
    assert not Path("x.jsonl").exists()
