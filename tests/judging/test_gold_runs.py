"""Runs that are watched: warnings, the gold reward of a real training, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orbiter.train.engine.session import Position
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.runlog import read_run
from orbiter.train.runlog.alarms import read_alarms, read_notes
from orbiter.train.synthesis.llm.judge import Judge
from orbiter.train.verl import RewardSpec, VeRLTrainer
from orbiter.train.verl.guard import signs, watch
from tests.agents.playing import spread, tiny, two_turns
from tests.judging.scripted import Scorer

SEEDS = range(20)

# --- warnings from what a step measures anyway ---------------------------------------------------


def steps_of(seed: int, *, pays: bool, steps: int = 30, group: int = 8) -> list[str]:
    """Simulate a run, which learns to write more if that is paid for, and return the warnings."""
    generator, position = np.random.default_rng(seed), Position()
    for step in range(steps):
        size = 20 + (4.0 * step if pays else 0.3 * step)
        lengths = np.maximum(1, generator.normal(size, 4, 4 * group)).astype(int)
        quality = generator.normal(0.5 + 0.01 * step, 0.2, 4 * group)
        totals = lengths / 100 + 0.02 * quality if pays else quality
        outputs = ["a" * int(n) + "!" * int(generator.integers(0, 3)) for n in lengths]
        row = {
            "reward": float(totals.mean()),
            "length": float(lengths.mean()),
            "reward/a": float(totals.mean()),
            "reward/b": float(np.clip(generator.normal(0.5, 0.05), 0, 1)),
            "order_effect/j": float(generator.normal(0, 0.2)),
        }
        watch(position, row | signs(outputs, lengths.tolist(), totals.tolist(), group), {})
    return position.warned


def test_a_reward_that_pays_for_length_is_noticed_and_honest_runs_are_not() -> None:
    assert [seed for seed in SEEDS if steps_of(seed, pays=False)] == []
    assert all("length_pays" in steps_of(seed, pays=True) for seed in SEEDS)


def holding(**series: tuple[float, float]) -> list[str]:
    position = Position()
    for step in range(12):
        noise = 0.01 * (step % 3)
        row = {k.replace("__", "/"): a if step < 6 else b for k, (a, b) in series.items()}
        watch(position, {name: value + noise for name, value in row.items()}, {"minus": -1.0})
    return position.warned


def test_a_reward_that_eats_another_is_noticed() -> None:
    assert holding(reward__fluent=(0.2, 0.9), reward__right=(0.6, 0.1)) == ["lost_reward/right"]
    assert holding(reward__fluent=(0.2, 0.9), reward__right=(0.6, 0.5)) == []
    assert holding(reward__fluent=(0.2, 0.3), reward__right=(0.6, 0.1)) == [], "the total fell"
    assert holding(reward__right=(0.6, 0.1)) == []
    assert holding(reward__minus=(0.6, 0.1), reward__right=(0.2, 0.9)) == [], "a penalty fell"


def test_markup_and_order_are_noticed() -> None:
    assert holding(markup=(0.05, 0.4), markup_effect=(0.1, 0.9)) == ["format_pays"]
    assert holding(markup=(0.05, 0.4), markup_effect=(0.1, 0.1)) == []
    assert holding(order_effect__j=(0.7, 0.7)) == ["order_effect/j"]
    assert holding(order_effect__j=(0.1, 0.1)) == []


def test_signs_are_correlations_within_the_groups() -> None:
    longer = ["a", "ab", "abc", "x", "xy", "xyz"]
    found = signs(longer, [1, 2, 3, 1, 2, 3], [0.1, 0.2, 0.3, 10.1, 10.2, 10.3], 3)
    assert found["length_effect"] == pytest.approx(1)
    assert signs(["a", "b"], [1, 1], [0.0, 1.0], 2) == {"markup": 0}
    assert signs(["a", "b"], [1, 2], [None, None], 2) == {}
    assert signs(["!!a", "b"], [1, 1], [1.0, None], 2)["markup"] == pytest.approx(2 / 3)


# --- a real run ----------------------------------------------------------------------------------


PROMPTS = ["Say something.", "Name a colour.", "Sing.", "Count.", "Hello?", "Why?"]


async def test_gold_measures_without_being_trained_by(tmp_path: Path) -> None:
    config = tiny(epochs=2, gold_every=1, output_dir=tmp_path)
    for agent in (None, two_turns):
        rewards = [RewardSpec("probe", 2.0, spread)]
        folder = tmp_path / str(agent is None)
        settings = {"epochs": 2, "gold_every": 1, "gold_tasks": 4}
        trained = VeRLTrainer(
            tiny(**settings, output_dir=folder),
            rewards,
            agent=agent,
            gold=RewardSpec("gold judge", 1, Judge(Scorer(spread), "r")),
        )
        await trained.train(PROMPTS[:4])
        rows = read_run(folder).metrics
        assert all("gold/proxy" in row and "gold/gold judge" in row for row in rows)
        # The same function measured by both; the proxy is the weighted total.
        for row in rows:
            if agent is None:
                assert row["gold/proxy"] == pytest.approx(2 * row["gold/gold judge"], abs=1e-6)
        assert "reward/gold judge" not in rows[0]
        assert read_alarms(folder) == []
        assert read_run(folder).times[-1]["judge_calls"] > 0
    assert config.gold_every == 1


@pytest.mark.parametrize(
    ("gold", "settings", "message"),
    [
        (RewardSpec("probe", 1, spread), {}, "gold must have another name than 'proxy' and"),
        (RewardSpec("proxy", 1, spread), {}, "gold must have another name than 'proxy' and"),
        (spread, {}, "gold must be a RewardSpec, got function"),
        (RewardSpec("g", 1, lambda *, episode: episode.seconds), {}, "asks for task or result"),
    ],
)
async def test_a_gold_reward_that_cannot_be_measured_is_refused(
    gold: object,
    settings: dict[str, Any],
    message: str,
) -> None:
    trained = VeRLTrainer(tiny(**settings), [RewardSpec("probe", 1, spread)], gold=gold)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        await trained.train(PROMPTS)


def test_a_damaged_file_of_alarms_is_named(tmp_path: Path) -> None:
    (tmp_path / "alarms.json").write_text(json.dumps([{"step": 1}]))
    with pytest.raises(StorageError, match=r"alarms\.json does not hold the alarms"):
        read_alarms(tmp_path)
    (tmp_path / "notes.json").write_text("{")
    with pytest.raises(StorageError, match=r"notes\.json is damaged"):
        read_notes(tmp_path)
