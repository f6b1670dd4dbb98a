"""Run a child process with a time limit on every wait, and stop it reliably.

Its output goes to a file, so that a full pipe cannot block it and the output outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orbiter.train.disk import disk_errors
from orbiter.train.errors import TrainingError

LAST_LINES = 30
"""Lines of a log that an error shows."""
TAIL_BYTES = 64 * 1024
STOPPING_SECONDS = 30.0
"""Time that a child has to end after it was asked to."""
NOISE = (
    *("target_num_threads", "FutureWarning", "DeprecationWarning", "(autoscaler"),
    *("Continuous Token builder", "Using blocking ray.get", "it/s]", "s/it]", "?it/s"),
    *("engine is not available", "warnings.warn(", "[Performance]", "Time range:"),
    *("Per-operation statistics", "memory allocated (GB)"),
)
"""Words of library messages that are left out of the last lines, since they hide the reason."""


class Child:
    """A child process in a separate process group, all of which ends when the block is left."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        stdin: str = "",
    ) -> None:
        """Store the arguments; `async with` starts the process.

        Args:
            command: The program and its arguments.
            log: The file that receives its output.
            folder: Its working directory.
            environment: Its complete environment.
            stdin: Written to its standard input, which then stays open until the block is left.
        """
        self.command, self.log, self.folder = command, log, folder
        self.environment, self.stdin = environment, stdin
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Child:
        """Start the process."""
        with disk_errors(self.log), self.log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=dict(self.environment),
                # A group of processes, so that Ray's and verl's children can be ended with it.
                start_new_session=sys.platform != "win32",
            )
        assert self._process.stdin is not None
        self._process.stdin.write(self.stdin.encode())
        with contextlib.suppress(ConnectionError):
            # A child that ended at once closes the pipe; its exit code says why.
            await self._process.stdin.drain()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the process in any case, and wait for its end even if cancelled again."""
        # A task, so that a second cancellation does not leave processes on the GPUs.
        stopping = asyncio.ensure_future(self.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await stopping
            raise

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process, which must have been started."""
        assert self._process is not None
        return self._process

    @property
    def code(self) -> int | None:
        """Exit code of the process; None while it runs."""
        return self.process.returncode

    async def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for the process to end; return whether it has."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.process.wait()), seconds)
        return self.code is not None

    async def stop(self, seconds: float = STOPPING_SECONDS) -> None:
        """Ask the process to end, and kill it if it does not."""
        if self.code is None:
            self.process.terminate()
            await self.wait(seconds)
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Also after a normal end: grandchildren may outlive their parent.
                os.killpg(self.process.pid, signal.SIGKILL)
        elif self.code is None:
            self.process.kill()
        await self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def last_lines(self) -> str:
        """Return the end of its output, without noise from libraries."""
        return last_lines(self.log)


def last_lines(log: Path) -> str:
    """Return the end of a log file, without noise from libraries."""
    try:
        with log.open("rb") as file:
            # A job's log may be gigabytes long.
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no output)"
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if not any(word in line for word in NOISE)]
    return "\n".join(useful[-LAST_LINES:]) or "(no output)"


class Finished(NamedTuple):
    """Exit code and output of a finished child process."""

    code: int
    output: str
    errors: str


async def ask(
    command: Sequence[str], *, environment: Mapping[str, str], stdin: str, seconds: float
) -> Finished:
    """Run a child process to its end and return its output.

    Raises:
        TrainingError: it did not end in time, and was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environment),
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(stdin.encode()), seconds)
    except TimeoutError:
        raise TrainingError(f"{' '.join(command)} gave no answer within {seconds:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, output.decode(), errors.decode("utf-8", "replace"))
