from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.children import run_group

FORKS = """
import os, sys, time
from pathlib import Path
if os.fork() == 0:
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(600)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_a_grandchild_ends_with_a_child_that_ran_out_of_time(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    command = [sys.executable, "-c", FORKS, str(note)]
    with pytest.raises(subprocess.TimeoutExpired):
        run_group(command, env=os.environ, timeout=5)
    pid = int(note.read_text())
    for _ in range(500):  # until the system has buried it
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still alive")
