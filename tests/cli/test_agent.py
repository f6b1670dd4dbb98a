"""Training and evaluating an agent, an environment and a command from a config file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from orbiter.train.cli.evaluate import one_sided, rewards_by
from orbiter.train.cli.exits import ExitCode
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.evaluate import ScoredAttempt
from tests.cli.conftest import Run

AGENT = """
import httpx
from orbiter.train.agents import current_episode

URL = "https://api.example.invalid/v1/chat/completions"

async def agent(task):
    messages = [{"role": "user", "content": task["question"]}]
    async with httpx.AsyncClient() as client:
        for again in ("And?", ""):
            answer = await client.post(URL, json={"model": "m", "messages": messages})
            messages.append(answer.raise_for_status().json()["choices"][0]["message"])
            messages.append({"role": "user", "content": again})
    return messages[-2]["content"]

async def broken(task):
    await agent(task)
    raise RuntimeError("the database is down")

class Env:
    def reset(self, question: str):
        self.said = ""
        return question

    def on_answer(self, text: str) -> str | None:
        self.said = text
        return None

    def get_reward(self) -> float:
        return (sum(self.said.encode("utf-8", "replace")) % 97) / 97

def hashed(output: str) -> float:
    return (sum(output.encode("utf-8", "replace")) % 97) / 97
"""
CONFIG = """
[data]
train = "tasks.jsonl"
eval = "held_out.jsonl"

[train]
model = "tiny"
batch_size = 2
group_size = 3
max_response_length = 6
epochs = 1
"""
COMMAND = """
import json, os, sys, urllib.request
task = json.load(sys.stdin)
body = {"model": "m", "messages": [{"role": "user", "content": task["question"]}]}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {"content-type": "application/json"},
)
answer = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"] or ""
reward = sum(answer.encode("utf-8", "replace")) % 97 / 97
print(json.dumps({"output": answer, "reward": reward}))
"""


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_agent.py").write_text(AGENT)
    (tmp_path / "agent.py").write_text(COMMAND)
    (tmp_path / "config.toml").write_text(CONFIG)
    for name, count in (("tasks", 4), ("held_out", 3)):
        rows = [{"question": f"{name} {i}?", "topic": "ab"[i % 2]} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


KINDS = {
    "run": ['agent.run="my_agent.py:agent"', "reward=my_agent.py:hashed"],
    "environment": ['agent.environment="my_agent.py:Env"'],
    "command": [f"agent.command={sys.executable} agent.py"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_plays_two_episodes_and_says_what_a_step_costs(
    run: Run, agents: Path, kind: str
) -> None:
    ran = run("train", "-c", "config.toml", *KINDS[kind], "--dry-run")
    assert ran.code == ExitCode.OK, ran.err
    assert ran.out.count("task      {'question': 'tasks ") == 2
    assert "4 tasks, 3 held out" in ran.out
    assert "user      tasks 0?" in ran.out
    assert "assistant " in ran.out
    assert "  ended   done, after" in ran.out
    assert "  reward  " in ran.out
    assert ("turn 2" in ran.out) == (kind == "run")
    assert "6 episodes" in ran.out or "episodes  6" in ran.out
    assert "sampled" in ran.out
    told = json.loads(run("train", "-c", "config.toml", *KINDS[kind], "--dry-run", "--json").out)
    step = told["step"]
    assert step["episodes"] == 6
    assert 0 < step["sampled_tokens"] < step["trained_tokens"]
    assert step["seconds"] > 0
    assert step["memory_bytes"] > 1 << 20
    assert told["plan"]["steps"] == 2
    assert "downloaded" not in ran.out, "the tiny model is here"
    assert "depends on the episodes; --dry-run plays two" in ran.out
    assert told["plan"]["computes"]
    assert list(agents.glob("runs/*")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_train_measures_before_and_after_and_eval_reads_the_run(
    run: Run, agents: Path, kind: str
) -> None:
    ran = run("train", "-c", "config.toml", *KINDS[kind], "eval.by=topic", "--out", "runs/one")
    assert ran.code == ExitCode.OK, ran.err
    assert "held out  reward" in ran.out
    assert "try it    orbiter-train eval --run runs/one" in ran.out
    story = json.loads((agents / "runs/one/story.json").read_text())
    assert [exam["name"] for exam in story["exams"]] == ["before", "after"]
    assert len(story["tasks"]) == 3
    told = json.loads(run("eval", "--run", "runs/one", "--json").out)
    (measured,) = told["models"].values()
    after = json.loads((agents / "runs/one/result.json").read_text())["after"]["mean"]
    assert measured["reward"] == pytest.approx(after)
    (slices,) = told["by"]["models"].values()
    assert {value: each["n"] for value, each in slices.items()} == {"a": 2, "b": 1}


def test_an_agent_that_fails_is_found_by_the_dry_run(run: Run, agents: Path) -> None:
    words = ['agent.run="my_agent.py:broken"', "reward=my_agent.py:hashed"]
    ran = run("train", "-c", "config.toml", *words, "--dry-run")
    assert ran.code == ExitCode.CALLBACK
    assert "ended   agent_error: RuntimeError: the database is down" in ran.out
    assert "2 of 2 episodes failed" in ran.err


def test_a_dry_run_without_any_reward_says_so(run: Run, agents: Path) -> None:
    ran = run("train", "-c", "config.toml", 'agent.run="my_agent.py:agent"', "--dry-run")
    assert ran.code == ExitCode.OK
    assert "no episode got a reward" in ran.out


@pytest.mark.parametrize("spec", ["by_file/agent.py:agent", "by_name.agent:agent"])
def test_an_agent_may_be_part_of_a_package(run: Run, agents: Path, spec: str) -> None:
    # Two names, since a package that is loaded already is not loaded from another folder.
    parts = agents / spec.replace("/", ".").partition(".")[0]
    parts.mkdir()
    (parts / "__init__.py").touch()
    (parts / "agent.py").write_text("from .inner import agent\n\nMARK = agent\n")
    (parts / "inner.py").write_text(AGENT)
    ran = run("train", "-c", "config.toml", f'agent.run="{spec}"', "reward=my_agent.py:hashed",
              "--dry-run")  # fmt: skip
    assert ran.code == ExitCode.OK, (ran.err, ran.out)
    assert "ended   done" in ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (['agent.run="my_agent.py:agent"', 'agent.command="x"'], "has run and command"),
        (['agent.folder="."'], "exactly one of run, command, environment, and has none of them"),
        (['agent.run="my_agent.py:agnet"'], "no 'agnet'; did you mean 'agent'?"),
        (['agent.run="my_agent.py"'], "[agent] run must look like"),
        (['agent.run="other.py:agent"'], "there is no file"),
        (['agent.run="my_agent.py:Env"'], "is the class Env"),
        (['agent.environment="my_agent.py:URL"'], "environment= must be a class"),
        (["agent.command=no-such-program x"], "there is no program 'no-such-program'"),
        (["agent.runs=1"], "there is no setting 'runs'; did you mean 'run'?"),
        (["agent.command=7"], "command must be a text"),
    ],
)
def test_a_bad_agent_section_is_refused(
    run: Run, agents: Path, words: list[str], message: str
) -> None:
    ran = run("train", "-c", "config.toml", *words, "--dry-run")
    assert ran.code == ExitCode.USAGE, (ran.err, ran.out)
    assert message in ran.err


def test_tasks_are_dicts_or_items(run: Run, agents: Path) -> None:
    for text, message in (("", "holds no"), ("[1]\n", "object"), ("{\n", "JSON")):
        (agents / "tasks.jsonl").write_text(text)
        ran = run("train", "-c", "config.toml", *KINDS["run"], "--dry-run")
        assert ran.code == ExitCode.DATA, ran.err
        assert message in ran.err
    item = {"state": "hello", "action": "x", "reward": None}
    (agents / "tasks.jsonl").write_text(json.dumps(item) + "\n")
    ran = run("train", "-c", "config.toml", *KINDS["run"], "--dry-run")
    assert "'TrajectoryItem' object is not subscriptable" in ran.out


class Case(NamedTuple):
    output: str
    reward: float | None
    label: str


def attempts(*cases: Case) -> list[ScoredAttempt]:
    return [
        ScoredAttempt(
            TrajectoryItem(f"q{i}", case.label, metadata={"label": case.label}),
            case.output,
            case.reward,
            {},
        )
        for i, case in enumerate(cases)
    ]


def test_rewards_are_measured_for_each_value_of_a_field() -> None:
    given = attempts(Case("x", 1.0, "a"), Case("x", 0.0, "a"), Case("y", 1.0, "b"))
    slices = rewards_by([*given, *attempts(Case("z", None, "c"))], "label")
    assert {value: (each.mean, each.n) for value, each in slices.items()} == {
        "a": (0.5, 2),
        "b": (1.0, 1),
    }
    assert rewards_by(given, "action").keys() == {"a", "b"}
    with pytest.raises(DataError, match="no task has this field; did you mean 'label'"):
        rewards_by(given, "labl")


def test_one_action_that_wins_everywhere_is_a_warning() -> None:
    mixed = [Case("escalate", 1.0, "ab"[i % 2]) for i in range(10)]
    (warning,) = one_sided(attempts(*mixed), "m")
    assert "'escalate' in 10 of 10" in warning
    assert one_sided(attempts(*mixed[:5]), "m") == []
    assert one_sided(attempts(*mixed[:8], Case("other", 0, "a"), Case("b", 0, "a")), "m") == []
    same = [Case("escalate", 1.0, "a") for _ in range(10)]
    assert one_sided(attempts(*same), "m") == []  # the data want nothing else


def test_imitation_ignores_a_reward_that_judges_episodes(run: Run, agents: Path) -> None:
    item = {"state": "[user]\nWhere is it?", "action": "Here.", "reward": 1.0}
    (agents / "good.jsonl").write_text(json.dumps(item) + "\n")
    (agents / "judge.py").write_text("def judge(result):\n    return float(result.solved)\n")
    words = ["-c", "config.toml", "data.train=good.jsonl", "data.eval=good.jsonl", "sft.model=tiny"]
    asked = [*words, 'agent.run="my_agent.py:agent"', "reward=judge.py:judge"]
    ran = run("sft", *asked, "--dry-run")
    assert ran.code == 0, ran.err
    without = run("sft", *words, "reward=judge.py:judge", "--dry-run")
    assert (without.code, "judge" in without.err) == (ExitCode.CALLBACK, True)


def test_the_plan_counts_items_and_the_sequences_that_episodes_form(run: Run, agents: Path) -> None:
    asked = {"role": "user", "content": "Where is it?"}
    rows: list[dict[str, object]] = []
    for episode in ("a", "b"):
        answered = {"role": "assistant", "content": "There."}
        for step, messages in enumerate(([asked], [asked, answered, asked])):
            row = {"state": "s", "action": "There.", "reward": 1.0, "messages": messages}
            rows.append({**row, "episode_id": episode, "step": step})
    (agents / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data.train=good.jsonl", "data.eval=good.jsonl", "sft.model=tiny", "--dry-run"]
    assert "4 items in 2 sequences, 4 held out" in run("sft", *words).out
    (agents / "good.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert "1 items, 1 held out" in run("sft", *words).out


@pytest.mark.slow
def test_imitation_without_rewards_tells_the_loss_on_the_held_out_items(
    run: Run, agents: Path
) -> None:
    item = {"state": "[user]\nWhere is it?", "action": "Here.", "reward": 1.0}
    (agents / "good.jsonl").write_text(json.dumps(item) + "\n")
    words = ["data.train=good.jsonl", "data.eval=good.jsonl", "sft.model=tiny", "sft.epochs=1"]
    ran = run("sft", *words, "--out", "runs/sft")
    assert ran.code == 0, ran.err
    assert "try it    orbiter-train generate --model runs/sft/model" in ran.out
    told = [line for line in ran.out.splitlines() if line.startswith("held out  loss ")]
    assert len(told) == 1
    result = json.loads((agents / "runs/sft/result.json").read_text())
    assert 0 < result["held_out"]["loss"] < 6
    assert told[0].endswith(f"{result['held_out']['loss']:.4g}")
    assert "try it    orbiter-train generate --model" in ran.out, "there is no agent"


@pytest.mark.slow
def test_a_model_that_imitated_an_agent_is_tried_with_the_agent(run: Run, agents: Path) -> None:
    item = {"state": "[user]\nWhere is it?", "action": "Here.", "reward": 1.0}
    (agents / "good.jsonl").write_text(json.dumps(item) + "\n")
    with (agents / "config.toml").open("a") as config:
        config.write('\n[agent]\nrun = "my_agent.py:agent"\n')
    words = ["data.train=good.jsonl", "data.eval=good.jsonl", "sft.model=tiny", "sft.epochs=1"]
    ran = run("sft", "-c", "config.toml", *words, "--out", "runs/sft")
    assert ran.code == ExitCode.OK, ran.err
    (line,) = [line for line in ran.out.splitlines() if line.startswith("try it")]
    tried = line.split()
    assert tried[2:] == [
        "orbiter-train", "eval", "--config", "config.toml", "--model", "runs/sft/model",
    ]  # fmt: skip
    measured = run(*tried[3:], "reward=my_agent.py:hashed")
    assert measured.code == ExitCode.OK, measured.err
    assert "tasks of" in measured.out
