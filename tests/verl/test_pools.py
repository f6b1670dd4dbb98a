from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train import ConfigError, RewardSpec, VeRLConfig, VeRLTrainer, read_run
from orbiter.train.engine.session import Position
from orbiter.train.engine.tasks import Tasks
from orbiter.train.report import write_report
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.extra_groups import flat_groups
from orbiter.train.verl.pools import choose, pool_metrics, update_pools
from tests.agents.playing import ask, spread

TASKS = [f"Task {n}." for n in range(6)]


def pools(**settings: Any) -> VeRLConfig:  # noqa: ANN401 - VeRLConfig's
    small: dict[str, Any] = {
        "model": "tiny", "epochs": 2, "batch_size": 2, "group_size": 2, "max_response_length": 4,
    }  # fmt: skip
    return VeRLConfig(**(small | settings))


def first_letter(output: str) -> float:
    """Tell outputs apart, mostly."""
    return float(sum(output.encode()) % 2)


def played(config: VeRLConfig, position: Position, steps: int, count: int) -> list[list[int]]:
    """Return the tasks of a few steps, whose pools do not change."""
    chosen = []
    for step in range(steps):
        turn = choose(config, position, step, count)
        position.cursor = turn.cursor
        chosen.append(turn.places)
    return chosen


@pytest.mark.parametrize("count", [1, 5, 8])
def test_without_pools_the_tasks_are_those_of_the_epochs(count: int) -> None:
    config = pools(batch_size=3)
    tasks = Tasks([TrajectoryItem(str(n), "") for n in range(count)], [[]] * count)
    for step in range(7):
        turn = choose(config, Position(), step, count)
        assert turn.places == tasks.order(step, 3, seed=config.seed)
        assert turn.cursor == turn.passed_over == 0


def test_while_the_pools_are_empty_every_task_is_asked_once_an_epoch() -> None:
    chosen = played(pools(solved_rate=0.1), Position(), 6, 6)
    for epoch in (chosen[:3], chosen[3:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(6))


@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_a_task_of_a_pool_takes_its_share_of_turns(rate: float) -> None:
    config = pools(solved_rate=rate, unsolved_rate=0.5, batch_size=2)
    position = Position(pools={"0": "solved", "1": "unsolved"})
    steps = 3000
    asked = Counter(chain.from_iterable(played(config, position, steps, 8)))
    turns = position.cursor / 8
    assert asked[0] / turns == pytest.approx(rate, abs=0.04)
    assert asked[1] / turns == pytest.approx(0.5, abs=0.04)
    assert all(asked[task] == pytest.approx(turns, rel=0.03) for task in range(2, 8))
    assert sum(asked.values()) == 2 * steps


def test_a_step_is_filled_although_every_task_is_in_a_pool_and_has_no_task_twice() -> None:
    config = pools(solved_rate=1e-9, batch_size=4)
    position = Position(pools={str(task): "solved" for task in range(6)})
    chosen = played(config, position, 30, 6)
    assert all(len(set(step)) == len(step) == 4 for step in chosen)
    assert set(chain.from_iterable(chosen)) == set(range(6))


def test_groups_move_their_tasks_into_pools_and_out_again() -> None:
    config, position = pools(solved_rate=0.5, solved_reward=0.9), Position()
    update_pools(config, position, [3, 4, 5], [1.0, 1.0, 0.2, 0.2, 0.0, 1.0])
    assert position.pools == {"3": "solved", "4": "unsolved"}
    update_pools(config, position, [3, 4, 5], [1.0, 0.0, None, 0.2, None, None])
    assert position.pools == {"4": "unsolved"}, "3 differs again; one reward says nothing"
    turn = choose(config, position, 0, 6)
    assert pool_metrics(config, position, turn, 6)["pool/unsolved"] == pytest.approx(1 / 6)
    off = pools()
    update_pools(off, position, [3], [1.0, 1.0])
    assert position.pools == {"4": "unsolved"}
    assert pool_metrics(off, position, turn, 6) == {}


@pytest.mark.parametrize("episodes", [False, True])
async def test_solved_tasks_are_asked_less_often_counted_and_shown(
    tmp_path: Path, *, episodes: bool
) -> None:
    asked: Counter[str] = Counter()

    def reward(output: str, item: TrajectoryItem) -> float:
        del output
        asked[item.state] += 1
        return 1.0 if item.state in TASKS[:2] else float(asked[item.state] % 2)

    async def agent(task: str) -> str:
        return str((await ask([{"role": "user", "content": task}]))["content"])

    config = pools(epochs=12, solved_rate=0.1, output_dir=tmp_path / "run", learning_rate=1e-6)
    run = VeRLTrainer(config, [RewardSpec("r", fn=reward)], agent=agent if episodes else None)
    await run.train(TASKS)
    rows = read_run(tmp_path / "run").metrics
    assert len(rows) == 36
    easy = sum(asked[task] for task in TASKS[:2]) / 2
    hard = sum(asked[task] for task in TASKS[2:]) / 4
    assert easy < hard / 2
    assert rows[-1]["pool/solved"] >= 2 / 6
    assert sum(row["pool/passed_over"] for row in rows) > 5
    assert "pool/solved" in write_report(tmp_path / "run").read_text()


BY_ARRIVAL = ("prompt_run_share", "sampler_gap")
"""Metrics that depend on which episodes' calls arrive together: what is computed for several at
once, and how the sampler rounds, some 1e-7."""


@pytest.mark.parametrize("episodes", [False, True])
async def test_a_resumed_run_goes_on_with_the_same_tasks(tmp_path: Path, *, episodes: bool) -> None:
    async def agent(task: str) -> str:
        return str((await ask([{"role": "user", "content": task}]))["content"])

    def run(name: str, **more: Any) -> VeRLTrainer:  # noqa: ANN401 - VeRLConfig's
        config = pools(
            epochs=6, solved_rate=0.2, unsolved_rate=0.3, output_dir=tmp_path / name, save_every=1,
            learning_rate=1e-4, **more,
        )  # fmt: skip
        spec = RewardSpec("r", fn=first_letter)
        return VeRLTrainer(config, [spec], agent=agent if episodes else None)

    await run("whole").train(TASKS)
    first = run("cut", max_seconds=1e-9)
    await first.train(TASKS)
    assert len(first.history) == 1
    await run("cut", resume=True).train(TASKS)
    rows = [
        [{k: v for k, v in row.items() if k not in BY_ARRIVAL} for row in read_run(folder).metrics]
        for folder in (tmp_path / "cut", tmp_path / "whole")
    ]
    assert rows[0] == rows[1]
    assert any(row["pool/passed_over"] for row in rows[0])
    assert read_run(tmp_path / "cut").samples == read_run(tmp_path / "whole").samples


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solved_rate": 0.0}, "solved_rate"),
        ({"unsolved_rate": 1.5}, "unsolved_rate"),
        ({"solved_reward": 0.5}, "no effect without pools"),
        ({"solved_rate": 0.5, "algorithm": "ppo", "group_size": 1}, "compare the samples"),
        ({"solved_rate": 0.5, "backend": "verl"}, "solved_rate=0.5 has no counterpart in verl"),
        ({"unsolved_rate": 0.5, "backend": "verl"}, "unsolved_rate=0.5 has no counterpart"),
        ({"max_extra_groups": 1, "algorithm": "ppo", "group_size": 1}, "max_extra_groups=1"),
        ({"max_extra_groups": 1, "backend": "verl"}, "max_extra_groups=1 has no counterpart"),
    ],
)
def test_settings_of_pools_that_cannot_work_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        pools(**settings)


# --- groups that teach nothing are replaced ------------------------------------------------------


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), max_size=8))
def test_flat_groups_are_those_that_dapo_filters_out(groups: list[list[float]]) -> None:
    """verl's DAPO keeps prompts with np.std(rewards) > 0; binary fractions leave no rounding."""
    kept = [i for i, group in enumerate(groups) if np.std(group) > 0]
    flat = flat_groups([reward for group in groups for reward in group], 4)
    assert sorted(kept + flat) == list(range(len(groups)))
    assert not set(kept) & set(flat)


def test_equal_rewards_are_flat_whatever_their_rounding_and_missing_ones_teach_nothing() -> None:
    assert flat_groups([0.1, 0.1, 0.1, 0.7, 0.7, 0.7], 3) == [0, 1]
    assert flat_groups([None, 1.0, 0.0, None, None, 1.0], 3) == [1]


async def test_flat_groups_of_answers_are_replaced_within_a_budget(tmp_path: Path) -> None:
    asked: list[str] = []

    def reward(output: str, item: TrajectoryItem) -> float:
        asked.append(item.state)
        return 0.5 if item.state in TASKS[::2] else spread(output)

    rows = []
    for budget in (0, 2):
        asked.clear()
        config = pools(
            epochs=1, batch_size=3, group_size=3, max_extra_groups=budget, learning_rate=1e-4,
            output_dir=tmp_path / str(budget),
        )  # fmt: skip
        run = VeRLTrainer(config, [RewardSpec("r", fn=reward)])
        await run.train(TASKS)
        rows.append(run.history)
        extra = sum(int(row.get("extra_groups", 0)) for row in run.history)
        assert len(asked) == 3 * (6 + extra)
    without, with_extra = rows
    assert "extra_groups" not in without[0]
    half = sum(row["flat_groups"] for row in without) / 2
    assert half == pytest.approx(0.5), "every second task"
    assert sum(row["flat_groups"] for row in with_extra) < 1.0
    assert all(row["extra_groups"] <= 2 for row in with_extra)
    assert with_extra[0]["reward"] == without[0]["reward"], "that of the step's own tasks"
    groups = read_run(tmp_path / "2").samples
    assert [group["step"] for group in groups] == [1, 1, 1, 2, 2, 2], "as many as without"
    outputs: list[Any] = [group["outputs"] for group in groups]
    flat = [each for each in outputs if len({output["reward"] for output in each}) == 1]
    assert len(flat) / 3 == pytest.approx(sum(row["flat_groups"] for row in with_extra))


async def test_a_resumed_run_replaces_the_same_groups(tmp_path: Path) -> None:
    def run(name: str, **more: Any) -> VeRLTrainer:  # noqa: ANN401 - VeRLConfig's
        config = pools(
            epochs=2, batch_size=3, group_size=2, max_extra_groups=3, save_every=1,
            learning_rate=1e-3, output_dir=tmp_path / name, **more,
        )  # fmt: skip
        return VeRLTrainer(config, [RewardSpec("r", fn=first_letter)])

    await run("whole").train(TASKS)
    cut = run("cut", max_seconds=1e-9)
    await cut.train(TASKS)
    await run("cut", resume=True).train(TASKS)
    rows, whole = (read_run(tmp_path / name) for name in ("cut", "whole"))
    assert rows.metrics == whole.metrics
    assert rows.samples == whole.samples
    assert any(row["extra_groups"] for row in whole.metrics)
