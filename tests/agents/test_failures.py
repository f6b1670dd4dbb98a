"""Failed and truncated episodes, flat groups, and a policy that collapses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orbiter.train.agents import current_episode
from orbiter.train.engine.session import Position
from orbiter.train.errors import CallbackError
from orbiter.train.verl import RewardSpec, VeRLTrainer
from orbiter.train.verl.guard import WINDOW, call_metrics, warnings, watch
from tests.agents.playing import ask, spread, tiny, trainer, two_turns


async def test_a_failed_episode_is_played_again_with_the_same_draws() -> None:
    answers: dict[tuple[str, int], list[str]] = {}

    async def flaky(task: str) -> str:
        key = (task, current_episode().attempt)
        said = await two_turns(task)
        answers.setdefault(key, []).append(said)
        if len(answers[key]) < 3 and key[1] == 1:
            raise RuntimeError("a tool is down")
        return said

    run = trainer(flaky, episode_retries=2, max_failed_share=0)
    await run.train(["a", "b"])
    row = run.history[0]
    assert row["failed"] == 0
    assert row["retries"] == 4
    for key, said in answers.items():
        assert len(said) == (3 if key[1] == 1 else 1)
        assert len(set(said)) == 1
    answers.clear()
    with pytest.raises(CallbackError, match="2 of 6 episodes failed"):
        await trainer(flaky, episode_retries=1, max_failed_share=0).train(["a", "b"])


async def long_or_short(task: str) -> str:
    """Every second attempt runs into max_turns."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    turns = 5 if current_episode().attempt % 2 else 1
    for _ in range(turns):
        messages += [await ask(messages), {"role": "user", "content": "And?"}]
    return str(messages[-2]["content"])


def constant(output: str) -> float:
    del output
    return 1.0


@pytest.mark.parametrize(
    ("setting", "flat", "sign"), [("score", 1.0, 0), ("mask", 1.0, 0), (-1.0, 0.0, -1)]
)
async def test_running_out_of_turns_is_scored_masked_or_penalised(
    tmp_path: Path,
    setting: Any,  # noqa: ANN401
    flat: float,
    sign: int,
) -> None:
    settings = {"max_turns": 2, "group_size": 4, "on_truncation": setting}
    config = tiny(**settings, max_flat_steps=5, output_dir=tmp_path / "run")
    run = VeRLTrainer(config, [RewardSpec("same", fn=constant)], agent=long_or_short)
    await run.train(["a", "b"])
    row = run.history[0]
    assert row["stopped/max_turns"] == 4
    assert row["failed"] == 0
    assert row["reward"] == 1.0, "the metrics are those of the rewards"
    assert row["flat_groups"] == flat
    lines = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    outputs = json.loads(lines[0])["outputs"]
    assert [output["cut_off"] for output in outputs] == [False, True, False, True]
    cut = outputs[1]["advantage"]
    if setting == "mask":
        assert cut is None
    else:
        assert (cut < 0) if sign else (cut == 0)


async def test_flat_groups_are_replaced_within_a_budget_and_counted(tmp_path: Path) -> None:
    played: list[str] = []

    async def agent(task: dict[str, Any]) -> str:
        played.append(task["task_id"])
        return await two_turns(task["task_id"])

    def reward(output: str, task: dict[str, Any]) -> float:
        return spread(output) if task["teaches"] else 0.5

    tasks = [{"task_id": f"t{i}", "teaches": i % 2 == 0} for i in range(6)]
    rows = []
    for budget in (0, 2):
        played.clear()
        folder = tmp_path / f"run{budget}"
        run = VeRLTrainer(
            tiny(max_extra_groups=budget, output_dir=folder),
            [RewardSpec("r", fn=reward)],
            agent=agent,
        )
        await run.train(tasks)
        rows.append(run.history)
        assert len(played) == 3 * (6 + sum(int(row.get("extra_groups", 0)) for row in run.history))
    without, with_extra = rows
    assert sum(row["flat_groups"] for row in without) == 1.5
    assert sum(row["flat_groups"] for row in with_extra) < 1.5
    assert all(0 <= row["extra_groups"] <= 2 for row in with_extra)
    assert sum(row["extra_groups"] for row in with_extra) >= 2
    assert with_extra[0]["reward"] == without[0]["reward"], "that of the step's own tasks"
    lines = (tmp_path / "run2" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6


def history(**series: tuple[float, float]) -> dict[str, list[float]]:
    """Values at first and at last."""
    return {name: [a] * WINDOW + [b] * WINDOW for name, (a, b) in series.items()}


@pytest.mark.parametrize(
    ("series", "name"),
    [
        ({"tool_calls": (1.0, 0.1)}, "lost_tool_use"),
        ({"tool_calls": (0.1, 0.0)}, None),
        ({"bad_calls": (0.1, 1.2)}, "invalid_calls"),
        ({"bad_calls": (1.2, 1.2)}, None),
        ({"turns": (2.2, 1.0)}, "ends_at_once"),
        ({"turns": (1.1, 1.0)}, "ends_at_once"),  # a tiny model at twice its learning rate
        ({"turns": (1.1, 1.02)}, None),
        ({"turns": (1.02, 1.0)}, None),
        ({"turns": (1.0, 1.0)}, None),
        ({"length": (80.0, 3.0)}, "collapsing_length"),
        ({"length": (80.0, 900.0)}, "growing_length"),
        ({"length": (80.0, 120.0)}, None),
        ({"flat_groups": (0.2, 1.0)}, "flat_groups"),
        ({"flat_groups": (0.2, 0.6)}, None),
    ],
)
def test_a_collapse_has_a_name(series: dict[str, tuple[float, float]], name: str | None) -> None:
    holding = warnings(history(**series, reward=(0.5, 0.25)))
    assert list(holding) == ([name] if name else [])
    if name:
        assert "reward 0.25, at first 0.5" in holding[name]
    assert warnings({key: values[:-1] for key, values in history(**series).items()}) == {}


def test_a_warning_is_logged_once_until_it_holds_again(caplog: pytest.LogCaptureFixture) -> None:
    position = Position()
    for calls in [1.0] * 5 + [0.0] * 9 + [1.0] * 6 + [0.0] * 6:
        watch(position, {"tool_calls": calls, "reward": 0.1}, {})
    assert [record.message.split(":")[0] for record in caplog.records] == ["lost_tool_use"] * 2
    assert position.warned == ["lost_tool_use"]
    assert len(position.watched["tool_calls"]) == 2 * WINDOW


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("replies", "calls", "bad"),
    [
        ([[call("f", "{}")]], 1, 0),
        ([[call("f", '{"a": 1}')], [call("f", '{"a":1}')]], 2, 1),  # the same in other spelling
        ([[call("f", '{"a": 1}')], [call("f", '{"a": 2}')]], 2, 0),
        ([[call("g", "{}")]], 1, 1),  # a tool that is not offered
        ([[call("f", "{")], [call("f", "[1]")]], 2, 2),  # no JSON object
        (["<tool_call>{</tool_call>", "fine"], 0, 1),  # text that was meant to be a call
    ],
)
def test_calls_that_are_repeated_or_invalid_are_counted(
    replies: list[Any], calls: int, bad: int
) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    turns = [
        SimpleNamespace(
            tools=tools,
            reply={"content": r} if isinstance(r, str) else {"content": None, "tool_calls": r},
        )
        for r in replies
    ]
    episode: Any = SimpleNamespace(turns=turns)
    assert call_metrics([episode]) == {"tool_calls": calls, "bad_calls": bad}


async def test_a_short_run_that_learned_nothing_says_so_and_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await trainer(two_turns, max_episode_tokens=3).train(["a", "b"])
    assert "nothing was learned: in none of the 1 steps" in caplog.text
    assert "stopped/max_tokens 6" in caplog.text
    caplog.clear()
    await trainer(two_turns).train(["a", "b"])
    assert "nothing was learned" not in caplog.text
