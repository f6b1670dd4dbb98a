"""A full or read-only disk is an error with path, needed and free bytes, wherever we write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import run_child, started_child
from tests.full_disk_runs import CASES

OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount(folder: Path) -> bool:
    """Return whether a process with its own mounts may mount a small disk."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return False
    mount = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    return run_child(mount).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_a_full_disk_is_named_wherever_we_write(tmp_path: Path, part: int) -> None:
    if not may_mount(tmp_path):
        pytest.skip("this system lets no process of ours mount a small disk")
    names = [*CASES][part::3]
    script = Path(__file__).with_name("full_disk_runs.py")
    done = run_child(
        [*OWN_MOUNTS, sys.executable, str(script), str(tmp_path), *names],
        env=os.environ | {"PYTHONPATH": str(script.parents[1]), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome.keys() == set(names)
    assert {name: each["wrong"] for name, each in outcome.items() if each["wrong"]} == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line_and_a_code() -> None:
    command = [sys.executable, "-m", "orbiter.train.cli", "settings", "train"]
    with (
        Path("/dev/full").open("wb") as full,
        started_child(command, stdout=full, stderr=subprocess.PIPE) as child,
    ):
        _, err = child.communicate()
    assert child.returncode == 6
    assert err == "error: cannot write the output: No space left on device\n"
