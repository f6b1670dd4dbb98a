"""A command as an agent, from the command line through the real verl; interrupted and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orbiter.train.runlog import read_run
from tests.children import run_child, started_child
from tests.verl_cluster.rehearsing import processes_with

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]

SOLVE = """
import json, os, sys, urllib.error, urllib.request

def post(url, body):
    key = "Bearer " + os.environ["OPENAI_API_KEY"]
    head = {"content-type": "application/json", "authorization": key}
    asked = urllib.request.Request(url, json.dumps(body).encode(), head)
    return json.load(urllib.request.urlopen(asked))

def status(url):
    try:
        post(url, {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    except urllib.error.HTTPError as error:
        return error.code
    return 200

task = json.load(sys.stdin)
base, session = os.environ["OPENAI_BASE_URL"], os.environ["ORBITER_SESSION_URL"]
assert base == session + "/v1"
assert session.endswith("/s/" + os.environ["OPENAI_API_KEY"])
wrong = status(base.replace(os.environ["OPENAI_API_KEY"], "a" * 22) + "/chat/completions")
messages = [{"role": "user", "content": task["text"]}]
for _ in range(2):
    answer = post(base + "/chat/completions", {"model": "m", "messages": messages})
    messages += [answer["choices"][0]["message"], {"role": "user", "content": "And?"}]
post(session + "/reward", {"reward": 0.25 * (wrong in (401, 403, 404, 410))})
said = "".join(m["content"] or "" for m in messages if m["role"] == "assistant")
with open("played.txt", "a") as file:
    file.write(f"{os.getpid()}\\n")
print(json.dumps({"output": said}))
"""
REWARDS = """
def vowels(output: str) -> float:
    return sum(c in "aeiouAEIOU" for c in output) / max(1, len(output))
"""
CONFIG = """
[data]
train = "tasks.jsonl"

[agent]
command = "{python} solve.py"

[reward]
vowels = "rewards.py:vowels"

[train]
backend = "verl"
device = "cpu"
model = "tiny"
batch_size = 2
group_size = 4
epochs = 3
save_every = 2
learning_rate = 0.002
max_response_length = 6
progress = false
"""


def test_a_command_is_trained_from_the_command_line_interrupted_and_resumed(
    tmp_path: Path,
) -> None:
    (tmp_path / "solve.py").write_text(SOLVE)
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "config.toml").write_text(CONFIG.format(python=sys.executable))
    tasks = "".join(json.dumps({"text": text}) + "\n" for text in "abcdef")
    (tmp_path / "tasks.jsonl").write_text(tasks)
    run, log = tmp_path / "run", tmp_path / "first.log"
    command: list[str | Path] = [sys.executable, "-m", "orbiter.train.cli", "train"]
    first = [*command, "--config", "config.toml", "--out", run]
    with (
        log.open("wb") as output,
        started_child(first, cwd=tmp_path, stdout=output, stderr=output) as child,
    ):
        _await_steps(run, 5, child, log)
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        assert child.wait(120) == 130, log.read_text()
        assert "continue from the last checkpoint" in log.read_text()
        _await_nothing_of(tmp_path, besides=child.pid)
    before = [row["step"] for row in read_run(run).metrics]
    assert before == list(range(1, len(before) + 1))
    assert 5 <= len(before) < 9
    again = [*command, "--config", run / "config.toml", "--out", run, "--resume"]
    ended = run_child(again, cwd=tmp_path, timeout=400)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    logged = read_run(run)
    assert [row["step"] for row in logged.metrics] == list(range(1, 10)), "none twice or missing"
    for row in logged.metrics:
        assert row["failed"] == 0
        assert row["turns"] == 2
        assert row["reward/step_rewards"] == 0.25, "a reward was posted, and a wrong token refused"
        assert row["reward"] == pytest.approx(row["reward/vowels"] + 0.25)
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["planned_steps"], result["finished"]) == (9, 9, True)
    # 72 episodes count; of the steps after the last checkpoint, some were played twice.
    played = (tmp_path / "played.txt").read_text().split()
    assert len(set(played)) == len(played), "one process for each episode"
    assert 72 <= len(played) <= 72 + 8 * 3
    assert (run / "model").is_dir()


def _await_steps(run: Path, steps: int, child: subprocess.Popen[str], log: Path) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert child.poll() is None, log.read_text()
        file = run / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _await_nothing_of(folder: Path, *, besides: int) -> None:
    """Wait until the job, Ray and every command have ended."""
    until = time.monotonic() + 20
    while left := set(processes_with(str(folder))) - {besides, os.getpid()}:
        assert time.monotonic() < until, [Path(f"/proc/{p}/cmdline").read_bytes() for p in left]
        time.sleep(0.2)
