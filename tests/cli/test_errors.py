"""Whatever goes wrong is one plain line and a code that stays what it is."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from orbiter.train.cli.exits import ExitCode
from tests.cli.conftest import Run

WRONG: list[tuple[ExitCode, list[str], str]] = [
    (ExitCode.USAGE, ["train"], "there is no data"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "train.epocs=1"], "did you mean 'epochs'"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "nonsense"], "a setting looks like"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "reward=rewards.py:vowel"], "mean 'vowels'"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "reward=gone.py:fn"], "there is no file"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "reward=fn"], "must look like"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "reward.vowels.wieght=1"], "mean 'weight'"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "reward.a=nowhere.at.all:f"], "no module"),
    (ExitCode.USAGE, ["train", "-c", "config.toml", "train.minibatch_size=7"], "does not divide"),
    (
        ExitCode.USAGE,
        ["train", "-c", "config.toml", "train.eval_every=none", "--no-such"],
        "--no-such",
    ),
    (ExitCode.USAGE, ["evolve", "-c", "config.toml", "evolve.prompts=[]"], "nothing to begin with"),
    (
        ExitCode.USAGE,
        ["synth", "-c", "config.toml", "synth.templates=[]"],
        "nothing to make data with",
    ),
    (
        ExitCode.USAGE,
        ["synth", "-c", "config.toml", 'synth.teacher=["selfinstruct"]'],
        "self-instruct",
    ),
    (
        ExitCode.USAGE,
        ["eval", "-c", "config.toml", "eval.samples=-1"],
        "samples must be at least 0",
    ),
    (ExitCode.DATA, ["train", "-c", "config.toml", "data.train=broken.jsonl"], "broken.jsonl:2"),
    (ExitCode.DATA, ["train", "-c", "config.toml", "data.train=empty.jsonl"], "empty.jsonl"),
    (ExitCode.DATA, ["data", "stats", "broken.jsonl"], "broken.jsonl:2"),
    (ExitCode.CALLBACK, ["train", "-c", "config.toml", "reward=raises.py:fn"], "ZeroDivisionError"),
    (ExitCode.STORAGE, ["train", "-c", "config.toml", "data.train=gone.jsonl"], "gone.jsonl"),
    (ExitCode.STORAGE, ["train", "-c", "gone.toml"], "gone.toml"),
    (ExitCode.STORAGE, ["train", "-c", "config.toml", "train.model=./gone"], "gone"),
    (ExitCode.STORAGE, ["runs", "resume", "gone"], "holds no run"),
    (ExitCode.STORAGE, ["eval", "--run", "gone"], "holds no run"),
    (ExitCode.STORAGE, ["report", "gone"], "gone"),
    (ExitCode.STORAGE, ["init", "."], "has config.toml"),
]


@pytest.mark.parametrize(("code", "words", "message"), WRONG)
def test_a_mistake_is_one_line_and_its_code(
    run: Run, project: Path, code: ExitCode, words: list[str], message: str
) -> None:
    (project / "raises.py").write_text("1 / 0\n")
    (project / "empty.jsonl").write_text("")
    good = (project / "data.jsonl").read_text().splitlines()[0]
    (project / "broken.jsonl").write_text(good + '\n{"state": 3}\n')
    ran = run(*words)
    assert ran.code == code, ran
    assert message in ran.err
    assert "Traceback" not in ran.err
    if "Usage:" not in ran.err:
        assert ran.err.count("\n") == 1
        assert ran.err.startswith("error: ")


def test_with_json_the_error_is_an_object(run: Run, project: Path) -> None:
    ran = run("train", "-c", "config.toml", "train.epochs=0", "--json")
    told = json.loads(ran.out)["error"]
    assert (ran.code, told["code"], told["kind"]) == (2, 2, "ConfigError")
    assert "epochs must be at least 1" in told["message"]


def test_debug_shows_python_s_own_story(project: Path) -> None:
    from orbiter.train.cli.app import main
    from orbiter.train.errors import ConfigError

    with pytest.raises(ConfigError, match="epochs"):
        main(["train", "-c", "config.toml", "train.epochs=0", "--debug"])


def test_the_codes_stay_what_they_are() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "UNEXPECTED": 1,
        "USAGE": 2,
        "DATA": 3,
        "CALLBACK": 4,
        "TRAINING": 5,
        "STORAGE": 6,
        "MISSING": 7,
        "STATE": 8,
        "NOT_MET": 9,
        "UNDECIDED": 10,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    ran = run("init", tmp_path / "demo")
    assert ran.code == ExitCode.STORAGE
