"""`runs` and `report` over folders of runs, without training one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orbiter.train.cli.exits import ExitCode
from orbiter.train.runlog import RunLog
from orbiter.train.storage import AppendLog
from tests.cli.conftest import Run
from tests.report.folders import training


@pytest.fixture(autouse=True)
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old")):
        folder = training(Path("runs") / name, steps=3, seed=age)
        os.utime(folder / "run.json", (1e9 - age, 1e9 - age))


def test_the_page_is_that_of_the_latest_run(run: Run) -> None:
    ran = run("report", "--json")
    assert ran.code == ExitCode.OK, ran.err
    assert json.loads(ran.out) == {"report": str(Path("runs/new/report.html"))}
    assert Path("runs/new/report.html").read_text(encoding="utf-8").startswith("<!")
    assert not Path("runs/old/report.html").exists()


def test_the_page_of_a_named_run_goes_where_it_is_wanted(run: Run) -> None:
    ran = run("report", "runs/old", "--out", "page.html")
    assert (ran.code, ran.out) == (ExitCode.OK, "wrote page.html\n")
    assert Path("page.html").stat().st_size > 10_000


def test_without_runs_the_report_says_what_to_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    ran = run("report")
    assert ran.code == ExitCode.STORAGE
    assert ran.err == "error: there are no runs in runs; name a run's folder\n"
    ran = run("runs", "list")
    assert (ran.code, ran.err) == (ExitCode.OK, "")
    assert "there are no runs in runs; `orbiter-train init DIR`" in ran.out


def test_runs_are_listed_oldest_first_with_their_last_metrics(run: Run) -> None:
    listed = json.loads(run("runs", "list", "--json").out)
    assert [each["run"] for each in listed["runs"]] == ["runs/old", "runs/new"]
    assert {each["status"] for each in listed["runs"]} == {"stopped"}
    assert [each["steps"] for each in listed["runs"]] == [3, 3]
    assert listed["runs"][0]["config"]["seed"] == 1
    assert listed["runs"][0]["last"]["tokens"] == 80.0


def test_a_run_is_running_while_a_process_writes_it_and_finished_by_its_result(run: Run) -> None:
    def status() -> dict[str, str]:
        listed = json.loads(run("runs", "list", "--json").out)["runs"]
        return {Path(each["run"]).name: each["status"] for each in listed}

    Path("runs/old/result.json").write_text('{"finished": true}')
    with AppendLog("runs/new/metrics.jsonl"):
        assert status() == {"old": "finished", "new": "running"}
    assert status() == {"old": "finished", "new": "stopped"}


def test_a_comparison_shows_what_differs_and_only_metrics_of_both(run: Run) -> None:
    with RunLog("runs/new") as log:
        log.write(3, {"only here": 1.0})
    told = json.loads(run("runs", "compare", "runs/new", "runs/old", "--json").out)
    assert told["settings"] == {"seed": [0, 1]}
    assert list(told["metrics"])[:2] == ["reward", "loss"]
    assert "only here" not in told["metrics"]
    assert told["metrics"]["tokens"] == [80.0, 80.0]
    same = run("runs", "compare", "runs/new", "runs/new")
    assert same.out.startswith("the settings are the same\n")


@pytest.mark.parametrize("words", [["compare", "runs/new", "gone"], ["resume", "gone"]])
def test_a_folder_without_a_run_is_named(run: Run, words: list[str]) -> None:
    ran = run("runs", *words)
    assert ran.code == ExitCode.STORAGE
    assert ran.err.startswith("error: gone holds no run: ")


@pytest.mark.parametrize("damage", ["swapped", "doubled", "flipped"])
def test_a_run_whose_metrics_were_changed_is_listed_as_damaged(run: Run, damage: str) -> None:
    path = Path("runs/old/metrics.jsonl")
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        {
            "swapped": second + first + third,
            "doubled": first + first + second + third,
            "flipped": first.replace(b"80.0", b"90.0") + second + third,
        }[damage]
    )
    listed = json.loads(run("runs", "list", "--json").out)
    assert [each["run"] for each in listed["runs"]] == ["runs/new"]
    line = 2 if damage == "doubled" else 1
    assert (
        f"metrics.jsonl:{line} is not a record as it was written" in listed["damaged"]["runs/old"]
    )
    assert run("runs", "compare", "runs/old", "runs/new").code == ExitCode.STORAGE


def test_one_run_is_shown_with_its_cost(run: Run) -> None:
    with RunLog("runs/new") as log:
        log.write(3, {"judge_cost": 0.25, "judge_calls": 2.0})
        log.write(4, {"judge_cost": 0.5, "judge_calls": 5.0, "tokens": float("nan")})
        log.time(4, {"seconds": 2.0})
    told = json.loads(run("runs", "show", "runs/new", "--json").out)
    assert told["status"] == "stopped"
    assert told["cost"]["money"] == 0.5  # counted since the run began
    assert told["cost"]["endpoint_calls"] == 5
    assert told["cost"]["tokens"] == 240
    plain = run("runs", "show", "runs/new")
    assert plain.code == ExitCode.OK
    assert "money" in plain.out


def test_a_folder_that_is_no_run_is_named(run: Run, tmp_path: Path) -> None:
    ran = run("runs", "show", tmp_path)
    assert ran.code == ExitCode.STORAGE
    assert "holds no run" in ran.err
