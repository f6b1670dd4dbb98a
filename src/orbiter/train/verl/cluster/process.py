"""A child process whose every wait has an end: started, watched, stopped, asked for its last lines.

Its output goes to a file, so that nothing blocks it and the file outlives it. Left out: what it
does (`cluster.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from orbiter.train.errors import TrainingError

LAST_LINES = 30
"""Lines of a log that an error shows."""
TAIL_BYTES = 64 * 1024
STOPPING_SECONDS = 30.0
"""How long a child may take to end once it was told to."""
NOISE = (
    *("target_num_threads", "FutureWarning", "DeprecationWarning", "(autoscaler"),
    *("Continuous Token builder", "Using blocking ray.get", "it/s]", "s/it]", "?it/s"),
    *("engine is not available", "warnings.warn(", "[Performance]", "Time range:"),
    *("Per-operation statistics", "memory allocated (GB)"),
)
"""What is left out of the last lines: chatter of libraries that hides the reason."""


class Child:
    """A process in a group of its own; gone, with all that it started, when the block is left."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        stdin: str = "",
    ) -> None:
        """Take what to run; `async with` starts it.

        Args:
            command: The program and its arguments.
            log: Where its output goes.
            folder: Where it runs.
            environment: Its variables, all of them.
            stdin: Written to its standard input, which then stays open until the block is left.
        """
        self.command, self.log, self.folder = command, log, folder
        self.environment, self.stdin = environment, stdin
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Child:
        """Start it."""
        with self.log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=dict(self.environment),
                start_new_session=sys.platform != "win32",
            )
        assert self._process.stdin is not None
        self._process.stdin.write(self.stdin.encode())
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.drain()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it, whatever happened, and wait for that even when cancelled once more."""
        stopping = asyncio.ensure_future(self.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await stopping
            raise

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process itself, which has been started."""
        assert self._process is not None
        return self._process

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.returncode

    async def wait(self, seconds: float) -> bool:
        """Wait so long for its end; say whether it has ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.process.wait()), seconds)
        return self.code is not None

    async def stop(self, seconds: float = STOPPING_SECONDS) -> None:
        """Ask it to end, and make it end where it does not."""
        if self.code is None:
            self.process.terminate()
            await self.wait(seconds)
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        elif self.code is None:
            self.process.kill()
        await self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def last_lines(self) -> str:
        """Return the end of its output, without the chatter."""
        return last_lines(self.log)


def last_lines(log: Path) -> str:
    """Return the end of a log file, without the chatter."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no output)"
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not any(word in line for word in NOISE)]
    return "\n".join(told[-LAST_LINES:]) or "(no output)"


class Finished(NamedTuple):
    """What a short child has said."""

    code: int
    output: str
    errors: str


async def ask(
    command: Sequence[str], *, environment: Mapping[str, str], stdin: str, seconds: float
) -> Finished:
    """Run a short child to its end and return what it said.

    Raises:
        TrainingError: it did not end in time; it is killed then.
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
