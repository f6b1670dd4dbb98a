"""Agents in other processes: they find the policy and the task, and they always end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from orbiter.train.agents import run_episode
from orbiter.train.agents.command import CommandAgent, CommandResult, read_result
from orbiter.train.errors import CallbackError, ConfigError
from orbiter.train.serve.live import LivePolicy
from orbiter.train.trajectory import TrajectoryItem

ASKS = """
import json, os, sys, urllib.request

def post(url, body, **headers):
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request))

def ask(messages):
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    return post(url, {"model": "gpt-5", "messages": messages})["choices"][0]["message"]

task = sys.stdin.read()
assert task == os.environ["ORBITER_TASK"], task
messages = [{"role": "user", "content": task}]
messages.append(ask(messages))
messages.append({"role": "user", "content": "And?"})
answer = ask(messages)["content"] or ""
"""


def python(tmp_path: Path, text: str) -> CommandAgent:
    (tmp_path / "agent.py").write_text(text)
    return CommandAgent([sys.executable, "agent.py"], folder=tmp_path)


async def test_a_command_plays_an_episode_and_reports_its_reward(
    live: LivePolicy, tmp_path: Path
) -> None:
    end = """
post(os.environ["ORBITER_SESSION_URL"] + "/reward", {"reward": 0.25})
print("some log")
print(json.dumps({"output": answer, "reward": 0.5, "more": [1]}))
"""
    agent = python(tmp_path, ASKS + end)
    episode = await run_episode(agent, {"question": "ä?"}, live, seed=3)
    assert episode.error is None
    assert episode.stop_reason == "done"
    assert episode.step_rewards == (0.25, 0.5)
    assert len(episode.turns) == 2
    assert len(episode.streams) == 1
    assert episode.output == (episode.turns[-1].reply.get("content") or "")
    assert isinstance(episode.result, CommandResult)
    assert episode.result.values["more"] == [1]
    again = await run_episode(agent, {"question": "ä?"}, live, seed=3)
    assert [t.token_ids for t in again.turns] == [t.token_ids for t in episode.turns]


async def test_episodes_at_the_same_time_are_kept_apart(live: LivePolicy, tmp_path: Path) -> None:
    agent = python(tmp_path, ASKS + "print(task, answer)")
    runs = [run_episode(agent, task, live, seed=1) for task in ("a", "b", "c")]
    episodes = await asyncio.gather(*runs)
    for episode, task in zip(episodes, "abc", strict=True):
        assert episode.output.startswith(task)
        assert episode.turns[0].messages[0]["content"] == task


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("sys.exit(3)", "ended with exit code 3, and printed nothing"),
        ("raise KeyError('city')", "exit code 1: .*KeyError: 'city'"),
        ("os.kill(os.getpid(), 9)", "was ended by signal 9"),
        ("""print('{"reward": "much"}')""", "finite number as reward, got 'much'"),
        ("""print('{"reward": NaN}')""", "finite number as reward, got nan"),
    ],
)
async def test_a_command_that_fails_is_a_failed_episode(
    live: LivePolicy, tmp_path: Path, end: str, words: str
) -> None:
    agent = python(tmp_path, "import os, sys\n" + end)
    episode = await run_episode(agent, "x", live, seed=0)
    assert episode.stop_reason == "agent_error"
    with pytest.raises(CallbackError, match=f"(?s){words}"):
        raise CallbackError(str(episode.error))


LINGERS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
if child and sys.argv[1:] == ["end"]:
    sys.exit()
time.sleep(600)
"""


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", ["timeout", "cancelled", "end"])
async def test_a_command_ends_with_its_children_however_the_episode_ends(
    live: LivePolicy, tmp_path: Path, how: str
) -> None:
    (tmp_path / "agent.py").write_text(LINGERS)
    agent = CommandAgent(
        [sys.executable, "agent.py", *(["end"] if how == "end" else [])], folder=tmp_path
    )
    limit = 1.5 if how == "timeout" else None
    running = asyncio.create_task(run_episode(agent, "x", live, seed=0, timeout_seconds=limit))
    pids = tmp_path / "pids"
    while not pids.exists() or len(pids.read_text().splitlines()) < 2:
        await asyncio.sleep(0.02)
        assert not running.done() or how != "cancelled"
    if how == "cancelled":
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        expected = {"timeout": "timeout", "end": "no_calls"}[how]
        assert (await running).stop_reason == expected
    deadline = time.monotonic() + 20
    while not all(gone(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline, "a process is still alive"
        await asyncio.sleep(0.02)


async def test_the_session_ends_with_its_episode(live: LivePolicy, tmp_path: Path) -> None:
    agent = python(tmp_path, ASKS + "print(os.environ['OPENAI_BASE_URL'])")
    first = await run_episode(agent, "x", live, seed=0)

    async def second(task: str) -> str:
        """While another episode keeps the server up, the first one's URL is gone."""
        return (await agent.run(task)).output

    port = first.output.split("/")[2]
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, f"http://{port}/", timeout=5)
    assert (await run_episode(second, "x", live, seed=0)).stop_reason == "done"


async def test_a_task_of_any_size_arrives_on_standard_input(
    live: LivePolicy, tmp_path: Path
) -> None:
    text = "import os, sys\nprint(len(sys.stdin.read()), 'ORBITER_TASK' in os.environ)"
    agent = python(tmp_path, text)
    for task, expected in (("x" * 200_000, "200000 False"), ("é", "1 True")):
        assert (await run_episode(agent, task, live, seed=0)).output == expected
    item = TrajectoryItem("prompt", "answer", task_id="t")
    echo = python(tmp_path, "import sys\nprint(sys.stdin.read())")
    shown = (await run_episode(echo, item, live, seed=0)).output
    assert json.loads(shown)["state"] == "prompt"
    bad = await run_episode(agent, {"x": object()}, live, seed=0)
    assert "cannot be written as JSON" in str(bad.error)


@pytest.mark.parametrize(
    ("printed", "output", "reward"),
    [
        ("", "", None),
        ("42", "42", None),
        ("1.5\n", "1.5", None),
        ('["reward"]', '["reward"]', None),
        ('{"answer": 1}', '{"answer": 1}', None),
        ('line\n{"reward": 1}', "line", 1.0),
        ('line\n{"reward": true, "output": null}\n\n', "null", 1.0),
        ('{"output": {"a": 1}}', '{"a": 1}', None),
        ('{"reward": null, "output": "x"}', "x", None),
        ('{"reward": 1}\nlater', '{"reward": 1}\nlater', None),
    ],
)
def test_the_last_line_is_the_report(printed: str, output: str, reward: float | None) -> None:
    result = read_result(printed)
    assert (result.output, result.reward) == (output, reward)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "must name a program"),
        ([], "must name a program"),
        ([""], "must name a program"),
        ("no-such-program-here x", "there is no program 'no-such-program-here'"),
        ("./missing.sh", "there is no program './missing.sh'"),
        ("node 'agent.js", "cannot be split into words: No closing quotation"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(command: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CommandAgent(command)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is not a folder"):
        CommandAgent([sys.executable], folder="no/such/folder")


NODE = """
const task = require("fs").readFileSync(0, "utf8")
const ask = async (path, body) => (await fetch(path, {
  method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body),
})).json()
const messages = [{role: "user", content: task}]
ask(process.env.OPENAI_BASE_URL + "/chat/completions", {model: "m", messages}).then(async (a) => {
  await ask(process.env.ANTHROPIC_BASE_URL + "/v1/messages",
            {model: "m", messages, max_tokens: 5})
  await ask(process.env.OPENAI_BASE_URL + "/responses", {model: "m", input: task})
  console.log(JSON.stringify({output: a.choices[0].message.content, reward: 1}))
})
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
async def test_an_agent_in_another_language_uses_all_three_apis(
    live: LivePolicy, tmp_path: Path
) -> None:
    (tmp_path / "agent.js").write_text(NODE)
    agent = CommandAgent("node agent.js", folder=tmp_path)
    episode = await run_episode(agent, "hello", live, seed=0)
    assert episode.error is None
    assert len(episode.turns) == 3
    assert episode.step_rewards == (1.0,)


def test_the_environment_of_the_process_keeps_the_users_variables(tmp_path: Path) -> None:
    agent = CommandAgent([sys.executable], variables={"MINE": "1", "OPENAI_API_KEY": "real"})
    from orbiter.train.agents.session_server import SessionUrl

    given = agent._environment("task", SessionUrl("http://127.0.0.1:1/s/t", "t"))
    assert given["MINE"] == "1"
    assert given["OPENAI_API_KEY"] == "t"
    assert given["OPENAI_BASE_URL"] == "http://127.0.0.1:1/s/t/v1"
    assert given["PATH"] == os.environ["PATH"]
    assert "127.0.0.1" in given["NO_PROXY"]
