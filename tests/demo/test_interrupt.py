"""Ctrl-C, sent to a real run of the demo, which the same command then continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orbiter.train.demo.__main__ import INTERRUPTED
from tests.children import started_child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a single process"),
    pytest.mark.usefixtures("requests"),  # which skips where the leaderboard's wheel is missing
]


@contextmanager
def a_demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a quick demo, and end it with the block, however the block ends."""
    command = [sys.executable, "-u", "-m", "orbiter.train.demo", "--quick", "--out", str(folder)]
    with started_child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        yield demo


def interrupt(folder: Path, stage: str) -> str:
    """Send Ctrl-C when a stage begins, and return what the demo printed."""
    with a_demo(folder) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        assert any(line.startswith(f"{stage} ") for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        assert any("Ctrl-C again" in line for line in demo.stderr)
        out, err = demo.communicate(timeout=120)
    assert demo.returncode == INTERRUPTED == 130
    assert "Traceback" not in err
    return out


def finish(folder: Path) -> str:
    with a_demo(folder) as demo:
        out, err = demo.communicate(timeout=240)
    assert demo.returncode == 0, err
    return out


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_an_interrupted_demo_is_continued_and_gives_the_same_result(
    stage: str, tmp_path: Path
) -> None:
    out = interrupt(tmp_path / "stopped", stage)
    last = out.strip().splitlines()[-1]
    assert last.startswith(f"interrupted: {tmp_path / 'stopped'} keeps what is finished")
    assert "`make demo`" in last
    out = finish(tmp_path / "stopped")
    assert "capture finished before the interruption" in out
    finish(tmp_path / "whole")
    stopped, whole = (
        json.loads((tmp_path / name / "result.json").read_bytes()) for name in ("stopped", "whole")
    )
    for exam in ("before", "sft", "grpo"):
        assert stopped["exams"][exam]["replies"] == whole["exams"][exam]["replies"]
    assert stopped["curves"] == whole["curves"]
