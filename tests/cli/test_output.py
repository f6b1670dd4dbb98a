"""What reaches a terminal, a pipe, a narrow window and another encoding."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orbiter.train.cli.output import Output, command, finite
from tests.children import run_child_bytes
from tests.cli.conftest import Run
from tests.report.folders import training


def orbiter(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "orbiter.train.cli", *words]
    return run_child_bytes(command, env={**os.environ, **environment})


def test_json_has_no_number_that_json_lacks(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text('{"state": "s", "action": "a", "reward": 1}\n')
    ran = run("data", "stats", file, "--json")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    stats = json.loads(ran.out, parse_constant=refuse)
    assert (ran.code, stats["items"], stats["reward"]["mean"]) == (0, 1, 1.0)
    assert finite({"a": [float("nan"), (float("-inf"), 1.5)]}) == {"a": [None, [None, 1.5]]}


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_long_names_wrap_and_nothing_of_them_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    name = "runs/train-20261128-044623-a-long-name-for-a-run"
    Output().table(("run", "status", "steps", "model"), [(name, "finished", 15, "smollm2-135m")])
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in drawn
    lines = drawn.splitlines()
    if columns == 40:  # too narrow for a table: a line for every value
        assert lines == [f"run: {name}", "status: finished", "steps: 15", "model: smollm2-135m", ""]
        return
    assert max(map(len, lines)) <= columns
    assert name in "".join(line.strip().split(" ")[0] for line in lines if line.strip())
    assert all(word in drawn for word in ("finished", "15", "smollm2-135m"))


def test_one_damaged_run_is_named_and_the_others_are_listed(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        training(tmp_path / name, steps=2)
    with (tmp_path / "b/metrics.jsonl").open("ab") as file:
        file.write(b"nonsense\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/run.json").write_text("{")
    ran = run("runs", "list", tmp_path)
    assert ran.code == 0
    assert "damaged: " in ran.out
    assert f"{tmp_path / 'b'}: " in ran.out
    assert f"{tmp_path / 'd'}: " in ran.out
    listed = json.loads(run("runs", "list", tmp_path, "--json").out)
    assert sorted(Path(each["run"]).name for each in listed["runs"]) == ["a", "c"]
    assert sorted(Path(each).name for each in listed["damaged"]) == ["b", "d"]


def test_a_lock_that_is_a_link_is_not_opened(run: Run, tmp_path: Path) -> None:
    training(tmp_path / "run", steps=1)
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    lock = tmp_path / "run/metrics.jsonl.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(thesis)
    assert run("runs", "list", tmp_path).code == 0
    assert thesis.read_text() == "years of work"


def test_a_reader_that_leaves_is_not_an_error(tmp_path: Path) -> None:
    for number in range(30):
        training(tmp_path / f"run-{number}", steps=1)
    for words in (["runs", "list", str(tmp_path)], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = run_child_bytes([sys.executable, "-m", "orbiter.train.cli", *words], stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"},
     {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)  # fmt: skip
def test_every_encoding_gets_an_answer(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "läufe mit leerzeichen 模型"
    training(folder / "run", steps=1)
    shutil.copy(folder / "run/samples.jsonl", folder / "x.jsonl")
    for words in (["runs", "list"], ["runs", "list", "--json"], ["report"]):
        target = folder / "run" if words == ["report"] else folder
        done = orbiter(*words, str(target), **environment)
        assert done.returncode == 0, done.stderr
        assert b"run" in done.stdout


@pytest.mark.parametrize(("utf8", "code"), [("1", 0), ("0", 6)])
def test_a_file_name_that_the_locale_cannot_write_is_named(
    tmp_path: Path, utf8: str, code: int
) -> None:
    config = tmp_path / "config.toml"
    text = 'out = "mehr d\u00e4ten.jsonl"\ntemplates = ["Say {w}"]\nvariables = {w = ["a", "b"]}\n'
    config.write_text(f"[synth]\ntarget_size = 2\n{text}", "utf-8")
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
    done = orbiter("synth", "-c", str(config), **locale)
    assert done.returncode == code, done.stderr
    assert (b"PYTHONUTF8=1" in done.stderr) == (code == 6)


def test_printed_commands_are_quoted() -> None:
    assert command("runs", "resume", Path("runs/my run")) == (
        "orbiter-train runs resume 'runs/my run'"
    )


def test_a_new_project_says_how_to_enter_its_folder(run: Run, tmp_path: Path) -> None:
    assert f"cd '{tmp_path}/ein projekt'" in run("init", tmp_path / "ein projekt").out


@pytest.mark.parametrize("words", [["init", "file/x"], ["report", "run", "--out", "file/x.html"]])
def test_a_folder_that_cannot_be_written_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    training(Path("run"), steps=1)
    Path("file").write_text("no folder")
    ran = run(*words)
    assert ran.code == 6
    assert "file" in ran.err
    assert ran.err.count("\n") == 1
