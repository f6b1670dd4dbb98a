"""Judges in a config file: as rewards, compared, calibrated by a file of labels, and as gold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.cli.exits import ExitCode
from orbiter.train.evaluation import Judgement, judgement_lines
from orbiter.train.runlog import read_run
from tests.cli.conftest import Run
from tests.judging.scripted import answer_in, attempts_in, scores
from tests.llm.raw_server import RawServer, Reply, text

CONFIG = """
[data]
train = "data.jsonl"
[reward.quality]
judge = "Is the answer long?"
compare = true
max_calls = 40
max_cost = 1.0
[reward.brief]
fn = "rewards.py:brief"
weight = 0.1
[reward.trusted]
judge = "Is the answer right?"
gold = true
labels = "labels.jsonl"
[train]
model = "tiny"
batch_size = 2
group_size = 3
max_response_length = 6
learning_rate = 1e-3
progress = false
gold_every = 1
[llm]
model = "judge-model"
base_url = "{url}"
max_tokens = 200
price = {{ input = 1.0, output = 2.0 }}
"""


def judged(_number: int, body: dict[str, Any]) -> Reply:
    question = str(body["messages"][0]["content"])
    attempts = attempts_in(question)
    if attempts:
        return text(scores(*(min(1.0, len(attempt) / 60) for attempt in attempts)))
    right = "right" in answer_in(question)
    return text(json.dumps({"reason": "r", "score": float(right)}))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    rows = [{"state": f"task {n}", "action": "", "reward": None} for n in range(4)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("rewards.py").write_text("def brief(output):\n    return -len(output)\n")
    labels = [
        Judgement(
            rater="a", kind="right", value=i % 2, task="q", answers=(f"{'right' * (i % 2)}{i}",)
        )
        for i in range(12)
    ]
    Path("labels.jsonl").write_bytes(b"\n".join(judgement_lines(labels)))
    with RawServer(judged) as server:
        Path("config.toml").write_text(CONFIG.format(url=server.url))
        yield server


def test_a_config_file_trains_with_judges(server: RawServer, run: Run) -> None:
    shown = run("train", "--config", "config.toml", "--dry-run")
    assert shown.code == ExitCode.OK, shown.err
    assert "about 4 calls" in shown.out
    done = run("train", "--config", "config.toml", "--out", "runs/a")
    assert done.code == ExitCode.OK, done.err
    assert "right answers: passes 6 of 6; wrong answers: passes 0 of 6" in done.out
    kept = read_run("runs/a")
    assert {"reward/quality", "reward/brief", "gold/trusted", "gold/proxy"} <= set(kept.metrics[0])
    assert kept.times[-1]["judge_cost"] > 0
    [note] = json.loads(Path("runs/a/notes.json").read_text())
    assert "judge 'quality' is not calibrated" in note
    report = run("report", "runs/a")
    assert report.code == ExitCode.OK, report.out


def test_an_evaluation_names_an_uncalibrated_judge(server: RawServer, run: Run) -> None:
    shown = run("eval", "--config", "config.toml", "eval.samples=2", "--json")
    assert shown.code == ExitCode.OK, shown.err
    result = json.loads(shown.out)
    assert any("judge 'quality' is not calibrated" in line for line in result["warnings"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.quality.compare=7", "[reward] quality: compare must be true or false, got 7"),
        ("reward.quality.votes=0", "[reward] quality: votes must be at least 1, got 0"),
        ("reward.quality.max_calls=0", "[reward] quality: max_calls must be"),
        ("reward.quality.judge=' '", "[reward] quality: a judge needs a rubric"),
        ("reward.quality.comprae=true", "did you mean 'compare'?"),
        ("reward.brief.gold=true", "[reward] only one may be gold"),
        ("llm.price={}", "max_cost=1 needs the prices of judge-model"),
    ],
)
def test_a_wrong_setting_of_a_judge_is_named(
    server: RawServer, run: Run, override: str, message: str
) -> None:
    shown = run("train", "--config", "config.toml", override, "--dry-run")
    assert shown.code == ExitCode.USAGE, shown.out
    assert message in " ".join(shown.err.split())
