"""Child processes that end with their test, also when it fails or is interrupted.

Each child leads a session. When the block or the call ends, what is left of the session is killed,
so that nothing that a child has started outlives the test either. A test process that is killed,
as pytest-xdist does with its workers on Ctrl-C, has no time for that: then Linux sends its
children SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

TIMEOUT_SECONDS = 240.0
"""Below the time limit of a test, so that the message names the child."""
SETPRIV = shutil.which("setpriv")  # of util-linux: it sets the signal and becomes the command
ENDING_WITH_ITS_PARENT = [SETPRIV, "--pdeathsig", "TERM", "--"] if SETPRIV else []


@contextlib.contextmanager
def started_child(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Start a process, and kill what is left of it and of its children after the block."""
    with _session(command, env, cwd, stdin=stdin, stdout=stdout, stderr=stderr, text=True) as child:
        yield child


def run_child(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = TIMEOUT_SECONDS,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with `check`, its exit code must be 0."""
    pipe = subprocess.PIPE
    with started_child(command, env=env, cwd=cwd, stdout=pipe, stderr=pipe) as child:
        out, err = child.communicate(timeout=timeout)
    if check:
        assert child.returncode == 0, err
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def run_child_bytes(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdout: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose output need not be UTF-8."""
    pipe = subprocess.PIPE
    with _session(command, env, None, stdin=None, stdout=stdout, stderr=pipe, text=False) as child:
        out, err = child.communicate(timeout=TIMEOUT_SECONDS)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


@contextlib.contextmanager
def _session(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None,
    cwd: Path | None,
    *,
    stdin: int | None,
    stdout: int | IO[bytes] | None,
    stderr: int | IO[bytes] | None,
    text: bool,
) -> Iterator[subprocess.Popen]:  # type: ignore[type-arg]  # of str or bytes, as the caller says
    with subprocess.Popen(
        [*ENDING_WITH_ITS_PARENT, *command],
        env=None if env is None else dict(env),
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=text,
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            kill_session(child)


def kill_session(child: subprocess.Popen[str]) -> None:
    """Kill a process and all processes that it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
