"""A captured process that is killed loses no call that had come back."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orbiter.train import TrajectoryDataset
from tests.capture.server import ModelServer
from tests.children import started_child


@pytest.mark.slow
def test_sigkill_at_thirty_random_moments_loses_no_finished_call(tmp_path: Path) -> None:
    moments = random.Random(9)
    finished = 0
    with ModelServer() as server:
        for attempt in range(30):
            journal = tmp_path / f"journal{attempt}"
            command = [sys.executable, "-m", "tests.capture.killed_agent", server.url, str(journal)]
            with started_child(command, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                first = process.stdout.readline()
                time.sleep(moments.uniform(0.0, 0.3))
                process.kill()
                told = (first + process.stdout.read()).split("\n")[:-1]
            with TrajectoryDataset(path=journal) as dataset:
                kept = {
                    str(item.messages[-1]["content"]) for item in dataset.waiting if item.messages
                }
            assert set(told) <= kept, f"attempt {attempt} lost {set(told) - kept}"
            finished += len(told)
    assert finished > 30
