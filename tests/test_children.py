from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.children import SETPRIV, run_child, started_child

FORKS = """
import os, sys, time
from pathlib import Path
if os.fork() == 0:
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(600)
time.sleep(600)
"""


windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")


def await_end(pid: int) -> None:
    for _ in range(500):  # until the system has removed it
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still alive")


@windows
def test_a_grandchild_ends_with_a_child_that_ran_out_of_time(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    command = [sys.executable, "-c", FORKS, str(note)]
    with pytest.raises(subprocess.TimeoutExpired):
        run_child(command, timeout=5)
    await_end(int(note.read_text()))


def fail_in_the_block(command: list[str], note: Path, error: type[BaseException]) -> None:
    with started_child(command):
        while not note.exists() or not note.read_text():
            time.sleep(0.01)
        raise error


@windows
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_child_and_its_children_end_with_a_block_that_fails(
    error: type[BaseException], tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    with pytest.raises(error):
        fail_in_the_block([sys.executable, "-c", FORKS, str(note)], note, error)
    await_end(int(note.read_text()))


@pytest.mark.skipif(SETPRIV is None, reason="setpriv is of Linux")
def test_a_child_ends_with_a_test_process_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    tests_own = f"""
import os, signal, sys, time
from pathlib import Path
from tests.children import started_child
note = Path({str(note)!r})
waiting = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
with started_child([sys.executable, "-c", waiting, str(note)]):
    while not note.exists() or not note.read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with started_child([sys.executable, "-c", tests_own], cwd=Path(__file__).parents[1]) as killed:
        assert killed.wait(60) == -9
    await_end(int(note.read_text()))
