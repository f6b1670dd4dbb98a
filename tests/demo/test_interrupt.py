"""Ctrl-C, sent to a real run of the demo."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orbiter.train.demo.__main__ import INTERRUPTED, left_behind


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a single process")
@pytest.mark.usefixtures("requests")  # which skips where the leaderboard's wheel cannot be had
def test_ctrl_c_ends_the_demo_in_a_line_that_says_what_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "orbiter.train.demo", "--quick", "--out", str(folder)]
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        assert any(line.startswith("sft ") for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        assert any("Ctrl-C again" in line for line in demo.stderr)
        out, err = demo.communicate(timeout=120)
    assert demo.returncode == INTERRUPTED == 130
    assert "Traceback" not in err
    assert (folder / "traces.jsonl").exists()
    last = out.strip().splitlines()[-1]
    assert last.startswith(f"interrupted: {folder / 'traces.jsonl'} (the captured traces)")
    assert "a new one begins in a folder of its own" in last


def test_only_what_is_there_is_said_to_stay(tmp_path: Path) -> None:
    assert left_behind(tmp_path).startswith("nothing worth keeping")
    (tmp_path / "sft" / "best").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    said = left_behind(tmp_path)
    assert f"{tmp_path / 'sft/best'} (the best model of SFT)" in said
    assert "traces" not in said
