"""kill -9 of a real process at random moments: no acknowledged item is lost or doubled."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

from orbiter.train.trajectory import TrajectoryDataset
from tests.children import started_child
from tests.trajectory import writer


def kill_at_random(path: Path, kills: int, seed: int) -> int:
    """Start, kill and reopen over and over; return how many steps were acknowledged in all."""
    chance = random.Random(seed)
    start = 0
    for _ in range(kills):
        acknowledged = path.with_name("acknowledged")
        acknowledged.unlink(missing_ok=True)
        command = [sys.executable, writer.__file__, str(path), str(acknowledged), str(start)]
        with started_child(command) as process:
            while not acknowledged.exists() or not acknowledged.read_bytes():
                assert process.poll() is None, "the writer ended by itself"
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.02))
        lines = acknowledged.read_text().splitlines()[1:]
        steps = [int(line) for line in lines if line.isdigit()]
        episodes = [int(line.split()[1]) for line in lines if not line.isdigit()]
        start = check(path, max(steps, default=start - 1) + 1, max(episodes, default=-1) + 1)
    return start


def check(path: Path, steps: int, episodes: int) -> int:
    """Assert that the acknowledged ones are there, once and unchanged; return where to go on."""
    with TrajectoryDataset(path=path) as dataset:
        kept, waiting = list(dataset), dataset.waiting
        there = len(kept) + len(waiting)
        assert steps <= there <= steps + 1
        assert episodes * writer.EPISODE <= len(kept)
        assert kept == [writer.scored(number) for number in range(len(kept))]
        assert waiting == [writer.item(number) for number in range(len(kept), there)]
        if there and there % writer.EPISODE == 0 and waiting:  # killed just before the reward
            dataset.assign_reward(waiting[0].episode_id or "", 1.0)
    return there


@pytest.mark.slow
def test_30_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    assert kill_at_random(tmp_path / "journal", 30, seed=0) > 100


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_1000_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    acknowledged = 0
    for round_ in range(20):
        acknowledged += kill_at_random(tmp_path / f"journal-{round_}", 50, seed=round_)
    assert acknowledged > 10_000
