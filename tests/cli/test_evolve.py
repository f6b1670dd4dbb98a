"""`orbiter-train evolve`: a folder of its own, its prices, its held-out items, and how it ends."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbiter.train.cli.exits import ExitCode
from tests.cli.conftest import Run
from tests.llm.raw_server import RawServer, Reply, completion

REWARD = "def right(output, item):\n    return float(item.action in output)\n"
CONFIG = """
[data]
train = "train.jsonl"
eval = "eval.jsonl"
[reward]
right = "reward.py:right"
[llm]
model = "some-model"
base_url = "{url}"
price = {{ input = 0.0, output = 1000000.0 }}
[evolve]
prompts = ["Answer."]
epochs = 3
population_size = 2
"""


def reply(_number: int, body: dict[str, object]) -> Reply:
    """Answer a task right once the prompt says so; rewrite the prompt so that it does."""
    messages = body["messages"]
    assert isinstance(messages, list)
    if "improve the instructions" in messages[0]["content"]:
        text = "<think>Hm.</think><instructions>\nAnswer RIGHT.\n</instructions>"
    else:
        text = "yes" if "RIGHT" in messages[0]["content"] else "no"
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return completion({"content": text}, usage=usage)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"state": f"task {i}", "action": "yes", "reward": None}) for i in range(6)]
    Path("train.jsonl").write_text("\n".join(rows[:4]))
    Path("eval.jsonl").write_text("\n".join(rows[4:]))
    Path("reward.py").write_text(REWARD)
    with RawServer(reply) as started:
        Path("config.toml").write_text(CONFIG.format(url=started.url))
        yield started


def test_a_run_has_a_folder_a_page_and_a_held_out_score(run: Run, server: RawServer) -> None:
    ran = run("evolve", "-c", "config.toml", "--json")
    assert ran.code == ExitCode.OK, ran.err
    result = json.loads(ran.out)
    assert result["best"] == "Answer RIGHT."
    assert (result["initial_score"], result["score"], result["holdout_score"]) == (0.0, 1.0, 1.0)
    assert Path(result["folder"]).parent == Path("runs")
    assert Path(result["report"]).is_file()
    assert result["cost"] >= 8, "a token costs 1: four answers of two prompts, and the rewriting"
    shown = json.loads(run("runs", "show", result["folder"], "--json").out)["cost"]
    calls = len(server.seen)
    assert (shown["endpoint_calls"], shown["endpoint_tokens"]) == (calls, 2 * calls)
    assert shown["money"] == calls


def test_prices_make_max_cost_money(run: Run, server: RawServer) -> None:
    ran = run("evolve", "-c", "config.toml", "evolve.max_cost=5", "--json")
    result = json.loads(ran.out)
    assert result["stop_reason"] == "max_cost"
    assert result["cost"] <= 6


def test_the_same_folder_continues_and_pays_for_nothing_again(run: Run, server: RawServer) -> None:
    words = ["evolve", "-c", "config.toml", "evolve.run_dir=my run", "--json"]
    first = json.loads(run(*words).out)
    asked = len(server.seen)
    again = json.loads(run(*words).out)
    assert again["best"] == first["best"]
    assert again["holdout_score"] == first["holdout_score"]
    assert len(server.seen) == asked
    rows = Path("eval.jsonl").read_text().splitlines()
    Path("other.jsonl").write_text(rows[0].replace("task 4", "task 9"))
    changed = run(*words, 'data.eval="other.jsonl"', "evolve.concurrency=2")
    assert changed.code == ExitCode.OK, changed.err
    assert len(server.seen) == asked + 1, "the item of the other file alone is asked"
    ran = run(*words, 'data.train="eval.jsonl"')
    assert ran.code == ExitCode.USAGE
    assert "instances changed" in ran.out


def test_a_reward_that_changed_is_refused_by_name(run: Run, server: RawServer) -> None:
    words = ["evolve", "-c", "config.toml", "evolve.run_dir=r"]
    assert run(*words).code == ExitCode.OK
    Path("other.py").write_text(REWARD.replace("in output", "not in output"))
    ran = run(*words, "reward.right=other.py:right")
    assert ran.code == ExitCode.USAGE
    assert "metric changed" in ran.err


def test_an_endpoint_that_dies_leaves_the_best_and_says_how_to_continue(
    run: Run, server: RawServer
) -> None:
    Path("dies.py").write_text(
        "from orbiter.train import EvolutionStrategy\n"
        "class Dies(EvolutionStrategy):\n"
        "    calls = 0\n"
        "    async def evaluate(self, candidate):\n"
        "        Dies.calls += 1\n"
        "        if Dies.calls > 3: raise ConnectionError('gone')\n"
        "        return float(len(candidate))\n"
        "    async def mutate(self, candidate): return candidate + 'a'\n"
    )
    ran = run("evolve", "evolve.strategy=dies.py:Dies", 'evolve.prompts=["a b"]',
              "evolve.population_size=3", "evolve.epochs=50", "evolve.run_dir=a b")  # fmt: skip
    assert ran.code == ExitCode.CALLBACK
    assert "ended early" in ran.out
    assert "gone" in ran.out
    command = ran.out.split("Continue with: ")[1].splitlines()[0]
    assert shlex.split(command)[-1] == f"evolve.run_dir={Path('a b').resolve()}"


@pytest.mark.parametrize("name", ["gpt-4o-mini", "claude-sonnet", "openai/gpt-4o", "o3", "mymodel"])
def test_a_hosted_models_name_needs_an_endpoint(run: Run, server: RawServer, name: str) -> None:
    ran = run("evolve", "-c", "config.toml", f"llm.model={name}", "llm.base_url=none")
    assert ran.code == ExitCode.USAGE
    assert "needs an endpoint" in ran.err
    assert server.seen == []


@pytest.mark.parametrize("price", ["3", "{ input = 1 }", "{ input = -1, output = 1 }"])
def test_a_price_that_is_none_is_named(run: Run, server: RawServer, price: str) -> None:
    ran = run("evolve", "-c", "config.toml", f"llm.price={price}")
    assert ran.code == ExitCode.USAGE
    assert "price" in ran.err
