"""Ctrl-C in a real process: the first ends the step and saves, the second ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orbiter.train import read_run
from tests.children import started_child
from tests.cli.conftest import Run

pytestmark = pytest.mark.slow

SECONDS = 120.0
"""How long a busy machine may take for what is waited for."""
LONG = [
    *("train.epochs=4", "train.max_response_length=4", "train.group_size=4"),
    # One process of this file is a child, in which dtype="auto" measures the machine.
    "train.dtype=float32",
]


def started(*words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "orbiter.train.cli", *words]
    return started_child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_until(seen: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not seen():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.02)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_a_stopped_run_goes_on_and_ends_like_one_that_never_was(run: Run, project: Path) -> None:
    whole = run("train", "-c", "config.toml", *LONG, "--out", "runs/whole")
    assert whole.code == 0, whole.err

    # A slow reward holds every step up, so that the signal finds the run at work.
    (project / "slow.py").write_text(
        "import time\n"
        "from rewards import vowels\n"
        "def slow(output):\n"
        "    time.sleep(0.02)\n"
        "    return vowels(output)\n"
    )
    words = ["--out", "runs/halted", "reward.vowels.fn=slow.py:slow"]
    with started("train", "-c", "config.toml", *LONG, *words) as process:
        wait_until(lambda: lines(Path("runs/halted/metrics.jsonl")) >= 3, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert "finishing this step, then saving" in err
    assert "stopped; continue with: orbiter-train runs resume runs/halted" in out
    done = lines(Path("runs/halted/metrics.jsonl"))
    assert 3 <= done < 20

    resumed = run("runs", "resume", "runs/halted")
    assert resumed.code == 0, resumed.err
    assert read_run("runs/halted").metrics == read_run("runs/whole").metrics
    name = "model/model.safetensors"
    assert Path("runs/halted", name).read_bytes() == Path("runs/whole", name).read_bytes()


def test_the_second_signal_ends_it_at_once(project: Path) -> None:
    (project / "asleep.py").write_text(
        "import pathlib, time\n"
        "def fn(output):\n"
        "    pathlib.Path('asleep').touch()\n"
        "    time.sleep(1000)\n"
    )
    words = ["reward=asleep.py:fn", "train.reward_timeout_seconds=2000", "data.eval=none"]
    said = ""

    def told() -> bool:
        nonlocal said
        said += process.stderr.read() or ""  # type: ignore[union-attr] # it is a pipe
        return "once more stops at once" in said

    with started("train", "-c", "config.toml", "--out", "runs/one", *words) as process:
        wait_until(Path("asleep").exists, process)
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        process.send_signal(signal.SIGINT)
        wait_until(told, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130  # the reward would have slept for longer than that
        last = process.stderr.read()
    assert "stopped before the first checkpoint; start over with:" in last
    assert "runs resume runs/one" in last


def test_sigterm_before_the_first_step_leaves_nothing_to_go_on_with(project: Path) -> None:
    (project / "asleep.py").write_text(
        "import pathlib, time\n"
        "def fn(output):\n"
        "    pathlib.Path('asleep').touch()\n"
        "    time.sleep(2)\n"
        "    return 1.0\n"
    )
    words = ["--out", "runs/one", "reward=asleep.py:fn"]
    with started("train", "-c", "config.toml", *words) as process:
        wait_until(Path("asleep").exists, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 143, err
    assert "nothing was trained" in out
    assert "Traceback" not in err
