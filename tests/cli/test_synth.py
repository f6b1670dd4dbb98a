"""`orbiter-train synth`: what a run costs, keeps and says, on good days and bad ones."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.cli.exits import ExitCode
from tests.cli.conftest import Run
from tests.llm.raw_server import RawServer, Reply, failure, text

CONFIG = """
[llm]
model = "some-model"
base_url = "{url}"
attempts = 1
[synth]
out = "more.jsonl"
seeds = "seeds.jsonl"
teacher = ["respond"]
target_size = 8
dedup_threshold = "none"
on_error = "drop"
"""


class Endpoint:
    """Answers, fails, or judges, as a test sets it."""

    def __init__(self) -> None:
        self.refuses = "nothing of this"
        self.judgement = "1.0"

    def __call__(self, _number: int, body: dict[str, Any]) -> Reply:
        question = body["messages"][-1]["content"]
        if "Judge the answer" in question:
            return text(self.judgement)
        if self.refuses in question:
            return failure(400, "content filter")
        return text(f"an answer to {question}")


@pytest.fixture
def endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Endpoint, RawServer]]:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"state": f"task {n}", "action": "", "reward": None}) for n in range(8)]
    Path("seeds.jsonl").write_text("\n".join(rows))
    answers = Endpoint()
    with RawServer(answers) as server:
        Path("config.toml").write_text(CONFIG.format(url=server.url))
        yield answers, server


def lines(path: str) -> int:
    return len(Path(path).read_text().splitlines()) if Path(path).exists() else 0


def test_one_refused_item_is_told_and_the_exit_code_says_so(
    run: Run, endpoint: tuple[Endpoint, RawServer]
) -> None:
    answers, server = endpoint
    answers.refuses = "task 3"
    ran = run("synth", "-c", "config.toml")
    assert (ran.code, lines("more.jsonl")) == (ExitCode.CALLBACK, 7)
    assert "1 failures; the last: some-model: HTTP 400" in ran.out
    answers.refuses = "nothing"
    asked = len(server.seen)
    again = run("synth", "-c", "config.toml", "--json")
    assert (again.code, lines("more.jsonl"), len(server.seen) - asked) == (ExitCode.OK, 8, 1)
    assert json.loads(again.out)["failures"] == []


def test_a_run_of_nothing_but_failures_is_no_success(
    run: Run, endpoint: tuple[Endpoint, RawServer]
) -> None:
    answers, _ = endpoint
    answers.refuses = "task"
    ran = run("synth", "-c", "config.toml")
    assert (ran.code, lines("more.jsonl")) == (ExitCode.CALLBACK, 0)
    assert "8 failed" in ran.out
    assert "content filter" in ran.out
    command = ran.out.split("Continue with: ")[1].strip()
    answers.refuses = "nothing"
    assert run(*shlex.split(command)[1:]).code == ExitCode.OK
    assert lines("more.jsonl") == 8


def test_an_error_keeps_and_writes_what_was_answered(
    run: Run, endpoint: tuple[Endpoint, RawServer]
) -> None:
    answers, server = endpoint
    answers.refuses = "task 7"
    words = ("synth.on_error=raise", "synth.batch_size=2", "synth.concurrency=1")
    ran = run("synth", "-c", "config.toml", *words)
    assert (ran.code, lines("more.jsonl")) == (ExitCode.CALLBACK, 6)
    assert "content filter" in ran.err
    assert "Continue with: orbiter-train synth -c config.toml synth.on_error=raise" in ran.out
    assert "add: synth.on_error=drop" in ran.out
    answers.refuses = "nothing"
    asked = len(server.seen)
    assert run("synth", "-c", "config.toml", *words).code == ExitCode.OK
    assert (lines("more.jsonl"), len(server.seen) - asked) == (8, 1)


@pytest.mark.parametrize("mistake", ["synth.seed=7", "llm.model=other", "synth.min_score=0.3"])
def test_a_run_that_got_nothing_does_not_block_its_folder(
    run: Run, endpoint: tuple[Endpoint, RawServer], mistake: str
) -> None:
    answers, _ = endpoint
    answers.refuses = "task"
    assert run("synth", "-c", "config.toml", mistake).code == ExitCode.CALLBACK
    answers.refuses = "nothing"
    assert run("synth", "-c", "config.toml").code == ExitCode.OK
    other = run("synth", "-c", "config.toml", "synth.seed=9")
    assert other.code == ExitCode.USAGE
    assert "seed was 0, is 9" in other.err


def test_a_finished_run_may_be_prolonged(run: Run, endpoint: tuple[Endpoint, RawServer]) -> None:
    _, server = endpoint
    for target in (3, 5, 8):
        assert run("synth", "-c", "config.toml", f"synth.target_size={target}").code == ExitCode.OK
        assert lines("more.jsonl") == target
    assert len(server.seen) == 8


def test_a_judge_scores_and_what_it_cannot_score_is_rejected(
    run: Run, endpoint: tuple[Endpoint, RawServer]
) -> None:
    answers, _ = endpoint
    answers.judgement = '{"reason": "fine", "score": 0.9}'
    ran = run("synth", "-c", "config.toml", "synth.judge=Is it right?", "synth.min_score=0.5")
    assert ran.code == ExitCode.OK, ran.err
    rows = [json.loads(line) for line in Path("more.jsonl").read_text().splitlines()]
    assert {row["reward"] for row in rows} == {0.9}
    answers.judgement = "I give this a 1/10: wrong."
    words = ("synth.judge=Is it short?", "synth.unscored=drop", "synth.out=none.jsonl")
    ran = run("synth", "-c", "config.toml", *words)
    assert (ran.code, lines("none.jsonl")) == (ExitCode.DATA, 0)
    assert "8 unscored" in ran.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["synth.out=more.xyz"], ExitCode.USAGE, "more.xyz"),
        (["synth.out=seeds.jsonl/x.jsonl"], ExitCode.STORAGE, "seeds.jsonl"),
        (["synth.seeds=absent.jsonl"], ExitCode.STORAGE, "absent.jsonl"),
        (["synth.teacher=[\"resopnd\"]"], ExitCode.USAGE, "respond"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_paid(
    run: Run, endpoint: tuple[Endpoint, RawServer], words: list[str], code: ExitCode, message: str
) -> None:
    _, server = endpoint
    ran = run("synth", "-c", "config.toml", *words)
    assert (ran.code, server.seen) == (code, [])
    assert message in ran.err
