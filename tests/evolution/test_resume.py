"""Killed at any evaluation, a run goes on in its folder: same result, nothing paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, Score
from orbiter.train.report.lineage import read_lineage
from tests.children import run_child
from tests.evolution.problems import Bits, OneMax, population

ROOT = Path(__file__).parents[2]
KILL_POINTS = 34

PROGRAM = """
import asyncio, json, os, sys
from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, Score
from orbiter.train.report.lineage import read_lineage
from tests.evolution.problems import OneMax, population

run_dir, mode, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Logged(OneMax):
    async def evaluate(self, candidate):
        score = await super().evaluate(candidate)
        await asyncio.sleep(0)
        self.finished = getattr(self, "finished", 0) + 1
        if self.finished == kill_at:
            os.kill(os.getpid(), 9)
        return score

async def main():
    config = EvolutionConfig(epochs=6, population_size=12, seed=5, concurrency=3, mode=mode,
                             run_dir=run_dir, target=None)
    result = await EvolutionPipeline(config, Logged()).run(population(6))
    rows = [[m.name, list(m.candidate), m.score] for m in result.members]
    print(json.dumps({"best": result.best, "rows": rows, "evaluations": result.evaluations}))

asyncio.run(main())
"""


def start(run_dir: Path, mode: str, kill_at: int) -> "subprocess.CompletedProcess[str]":
    return run_child(
        [sys.executable, "-c", PROGRAM, str(run_dir), mode, str(kill_at)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def paid_trials(run_dir: Path) -> list[tuple[str, int]]:
    lines = (run_dir / "evolution.jsonl").read_text().splitlines()
    return [(r["m"], r["r"]) for r in map(json.loads, lines) if "m" in r]


@pytest.mark.slow
def test_killed_at_every_evaluation_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = json.loads(start(tmp_path / "whole", "generation", 0).stdout)
    assert whole["evaluations"] >= KILL_POINTS
    for kill_at in range(1, KILL_POINTS + 1):
        run_dir = tmp_path / f"killed at {kill_at}"
        killed = start(run_dir, "generation", kill_at)
        assert killed.returncode == -signal.SIGKILL
        resumed = start(run_dir, "generation", 0)
        assert json.loads(resumed.stdout) == whole, f"killed at {kill_at}: {resumed.stderr}"
        paid = paid_trials(run_dir)
        assert len(paid) == len(set(paid)) == whole["evaluations"]


@pytest.mark.slow
def test_killed_without_a_barrier_nothing_finished_is_evaluated_again(tmp_path: Path) -> None:
    for kill_at in range(1, KILL_POINTS + 1, 3):
        run_dir = tmp_path / f"killed at {kill_at}"
        assert start(run_dir, "steady", kill_at).returncode == -signal.SIGKILL
        before = paid_trials(run_dir)
        resumed = start(run_dir, "steady", 0)
        after = paid_trials(run_dir)
        assert resumed.returncode == 0, resumed.stderr
        assert after[: len(before)] == before
        assert len(after) == len(set(after)) == json.loads(resumed.stdout)["evaluations"]


async def test_a_finished_run_can_be_prolonged_and_pays_only_for_the_new(tmp_path: Path) -> None:
    def config(epochs: int) -> EvolutionConfig:
        return EvolutionConfig(epochs=epochs, population_size=8, run_dir=tmp_path)

    first, second = OneMax(), OneMax()
    short = await EvolutionPipeline(config(3), first).run(population(8))
    long = await EvolutionPipeline(config(6), second).run(population(8))
    whole = await EvolutionPipeline(EvolutionConfig(epochs=6, population_size=8), OneMax()).run(
        population(8)
    )
    assert len(first.evaluated) + len(second.evaluated) == long.evaluations
    assert long.to_dicts() == whole.to_dicts()
    assert short.evaluations < long.evaluations


async def test_another_runs_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    await EvolutionPipeline(
        EvolutionConfig(epochs=1, population_size=4, run_dir=tmp_path), OneMax()
    ).run(population(4))
    other = EvolutionConfig(epochs=1, population_size=4, run_dir=tmp_path, seed=1)
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        await EvolutionPipeline(other, OneMax()).run(population(4))


async def test_a_damaged_journal_names_file_and_line(tmp_path: Path) -> None:
    config = EvolutionConfig(epochs=1, population_size=4, run_dir=tmp_path)
    await EvolutionPipeline(config, OneMax()).run(population(4))
    path = tmp_path / "evolution.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    with pytest.raises(StorageError, match=r"evolution\.jsonl:2"):
        await EvolutionPipeline(config, OneMax()).run(population(4))


class HeldOutCalls:
    """A held-out test that counts its calls; `items` stand for its data."""

    def __init__(self, items: list[int], failed: dict[str, str] | None = None) -> None:
        self.items, self.failed = items, failed
        self.calls = 0

    def __call__(self, candidate: Bits) -> Score:
        self.calls += 1
        return Score(sum(candidate) + sum(self.items) / 8, failed=self.failed)


async def held_out_score(run_dir: Path, holdout: HeldOutCalls, epochs: int = 1) -> float | None:
    config = EvolutionConfig(epochs=epochs, population_size=4, run_dir=run_dir)
    pipeline = EvolutionPipeline(config, OneMax(), holdout=holdout)
    return (await pipeline.run(population(4))).holdout_score


async def test_a_finished_run_takes_its_held_out_score_from_the_journal(tmp_path: Path) -> None:
    first, second = HeldOutCalls([1, 2]), HeldOutCalls([1, 2])
    score = await held_out_score(tmp_path, first)
    page = read_lineage(tmp_path / "evolution.jsonl", "run")
    assert page["best"] is not None
    assert await held_out_score(tmp_path, second) == score
    assert (first.calls, second.calls) == (1, 0)


async def test_other_held_out_data_are_scored_anew(tmp_path: Path) -> None:
    score = await held_out_score(tmp_path, HeldOutCalls([1, 2]))
    other = HeldOutCalls([1, 3])
    assert score is not None
    assert await held_out_score(tmp_path, other) == score + 1 / 8
    assert other.calls == 1
    assert await held_out_score(tmp_path, HeldOutCalls([1, 2])) == score


async def test_a_list_that_a_held_out_function_refers_to_is_data_too(tmp_path: Path) -> None:
    def holdout_with(items: list[int], calls: list[int]) -> Callable[[Bits], float]:
        def holdout(candidate: Bits) -> float:
            calls.append(1)
            return sum(candidate) + sum(items) / 8

        return holdout

    config = EvolutionConfig(epochs=1, population_size=4, run_dir=tmp_path)
    calls: list[list[int]] = []
    for items in ([1], [1], [2]):
        calls.append([])
        holdout = holdout_with(items, calls[-1])
        await EvolutionPipeline(config, OneMax(), holdout=holdout).run(population(4))
    assert [len(made) for made in calls] == [1, 0, 1]


class Unreadable:
    """Data whose attributes cannot be read."""

    @property
    def fingerprint(self) -> str:
        raise RuntimeError("no connection")


@pytest.mark.parametrize("data", [deque([1]), bytearray(b"1"), Unreadable()])
async def test_data_that_cannot_be_compared_are_scored_anew(tmp_path: Path, data: object) -> None:
    calls: list[Bits] = []

    def holdout(candidate: Bits) -> float:
        assert data is not None
        calls.append(candidate)
        return 0.5

    config = EvolutionConfig(epochs=1, population_size=4, run_dir=tmp_path)
    for _ in range(2):
        calls.clear()
        result = await EvolutionPipeline(config, OneMax(), holdout=holdout).run(population(4))
        assert (result.holdout_score, len(calls)) == (0.5, 1)


async def test_a_range_that_a_held_out_function_refers_to_is_its_numbers(tmp_path: Path) -> None:
    def holdout_over(numbers: range, calls: list[int]) -> Callable[[Bits], float]:
        def holdout(_: Bits) -> float:
            calls.append(1)
            return float(len(numbers))

        return holdout

    config = EvolutionConfig(epochs=1, population_size=4, run_dir=tmp_path)
    scores: list[float | None] = []
    calls: list[list[int]] = []
    for numbers in (range(3), range(3), range(4)):
        calls.append([])
        pipeline = EvolutionPipeline(config, OneMax(), holdout=holdout_over(numbers, calls[-1]))
        scores.append((await pipeline.run(population(4))).holdout_score)
    assert scores == [3.0, 3.0, 4.0]
    assert [len(made) for made in calls] == [1, 0, 1]


async def test_another_winner_is_scored_on_the_held_out_data(tmp_path: Path) -> None:
    score = await held_out_score(tmp_path, HeldOutCalls([]))
    longer = HeldOutCalls([])
    better = await held_out_score(tmp_path, longer, epochs=6)
    assert score is not None
    assert better is not None
    assert better > score
    assert longer.calls == 1


async def test_failed_held_out_instances_are_tried_again(tmp_path: Path) -> None:
    failing, again = HeldOutCalls([1], {"a": "no answer"}), HeldOutCalls([1], {"a": "no answer"})
    await held_out_score(tmp_path, failing)
    await held_out_score(tmp_path, again)
    assert (failing.calls, again.calls) == (1, 1)
