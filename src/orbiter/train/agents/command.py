"""Run an agent that is a command, such as `node agent.js`: one process for each episode.

The process finds the policy in the environment variables that OpenAI's and Anthropic's clients
read (`OPENAI_BASE_URL`, `OPENAI_API_KEY`, `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY`), and its task
on standard input and in `ORBITER_TASK`. It reports its answer, and optionally its reward, in the
last line that it prints: {"output": "42", "reward": 1.0}. Without such a line, everything that it
prints is the answer. It may also post rewards to `$ORBITER_SESSION_URL/reward`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from orbiter.train.agents.episode import current_episode
from orbiter.train.agents.plain import as_plain
from orbiter.train.agents.session_server import SessionServer, SessionUrl
from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.codec import encode_item

OUTPUT_BYTES = 1 << 20
"""How much of the end of a process's output is read, in bytes."""
ERROR_CHARS = 800
"""How much of the end of its standard error a message quotes, in bytes."""
LARGEST_VARIABLE = 100_000
"""Bytes of a task that fit into an environment variable; Linux allows 128 KiB."""
KILL_AFTER_SECONDS = 2.0
"""How long a process may take to end after SIGTERM, before SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """The report of a command; rewards get it as `result`."""

    output: str
    """The answer."""
    reward: float | None
    """The reward in its last line, if it has one."""
    values: Mapping[str, Any]
    """All fields of its last line, if that is a JSON object."""


class CommandAgent:
    """An agent in another process: `VeRLTrainer(agent=CommandAgent("node agent.js"))`."""

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        folder: str | os.PathLike[str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Check the command; processes start with the episodes.

        Args:
            command: The program with its arguments, as a list or as a shell would split it. No
                shell runs it; write `sh -c "..."` if you need one.
            folder: Working directory; None means the current one.
            variables: Further environment variables of the process.

        Raises:
            ConfigError: the command is empty, or there is no such program or folder.
        """
        words = _split(command)
        where = Path(folder) if folder is not None else Path.cwd()
        if not where.is_dir():
            raise ConfigError(f"folder={os.fspath(where)!r} is not a folder")
        program = where / words[0] if os.sep in words[0] else words[0]
        if shutil.which(program) is None:
            raise ConfigError(f"there is no program {words[0]!r} to run {shlex.join(words)!r} with")
        self.words, self.folder, self.variables = words, where, dict(variables or {})
        # One server for all episodes of this agent; each episode has a separate URL and token.
        self._server = SessionServer()

    async def run(self, task: object) -> CommandResult:
        """Run the command on one task.

        Raises:
            CallbackError: it ended with an exit code other than 0, or reported an invalid reward.
            DataError: the task cannot be written as JSON.
            MissingExtraError: the extra `capture` is not installed.
        """
        text = task_text(task)
        async with self._server.open(episode := current_episode()) as url:
            # Files instead of pipes: a full pipe would block the process until someone reads.
            with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
                given.write(text.encode())
                given.seek(0)
                with tempfile.TemporaryFile() as errors:
                    async with self._process(text, url, given, output, errors) as process:
                        code = await process.wait()
                    if code:
                        raise CallbackError(self._failure(code, errors, output))
                result = read_result(_end_of(output, OUTPUT_BYTES))
            if result.reward is not None:
                episode.step_reward(result.reward)
        return result

    @asynccontextmanager
    async def _process(
        self, text: str, url: SessionUrl, given: IO[bytes], output: IO[bytes], errors: IO[bytes]
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start the process, and end it with all its children when the block is left."""
        process = await asyncio.create_subprocess_exec(
            *self.words,
            stdin=given,
            stdout=output,
            stderr=errors,
            cwd=self.folder,
            env=self._environment(text, url),
            # A separate process group lets `_end` reach children that the command started.
            start_new_session=sys.platform != "win32",
        )
        try:
            yield process
        finally:
            # A separate task, because a cancellation would otherwise leave the process running.
            ending = asyncio.ensure_future(_end(process))
            try:
                # Shielded from the first cancellation, and awaited to the end after it.
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                await ending
                raise

    def _environment(self, text: str, url: SessionUrl) -> dict[str, str]:
        # Without this, a proxy for the internet would get the calls to the local policy.
        direct = [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1,localhost"]
        no_proxy = ",".join(filter(None, direct))
        ours = {
            "OPENAI_BASE_URL": url.openai,
            "OPENAI_API_KEY": url.token,
            "ANTHROPIC_BASE_URL": url.base,
            "ANTHROPIC_API_KEY": url.token,
            "ORBITER_SESSION_URL": url.base,
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }
        # A task inherited from an outer agent must not be mistaken for this one.
        inherited = {k: v for k, v in os.environ.items() if k != "ORBITER_TASK"}
        # The environment cannot hold NUL or very long values; standard input has the task anyway.
        if len(text.encode()) <= LARGEST_VARIABLE and "\0" not in text:
            ours["ORBITER_TASK"] = text
        # Ours win: the user's variables must not point the agent to another model.
        return inherited | self.variables | ours

    def _failure(self, code: int, errors: IO[bytes], output: IO[bytes]) -> str:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = _end_of(errors, OUTPUT_BYTES).strip() or _end_of(output, OUTPUT_BYTES).strip()
        end = f": {last[-ERROR_CHARS:]}" if last else ", and printed nothing"
        return f"{shlex.join(self.words)!r} {how}{end}"


def task_text(task: object) -> str:
    """Return a task as the text that a command gets: a text as it is, anything else as JSON.

    Raises:
        DataError: it cannot be written as JSON.
    """
    if isinstance(task, str):
        return task
    if isinstance(task, TrajectoryItem):
        return encode_item(task).decode()
    try:
        return json.dumps(task, ensure_ascii=False, default=_fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the task cannot be written as JSON for the command: {error}") from error


def _fields(value: object) -> object:
    plain = as_plain(value)
    if plain is value:
        raise TypeError(f"an object of type {type(value).__name__} has no JSON form")
    return plain


def read_result(printed: str) -> CommandResult:
    """Read what a command printed: its answer, and the reward in its last line.

    Raises:
        CallbackError: the reward is not a finite number.
    """
    text = printed.strip()
    # Only the last line is a report; anything before it may be the program's chatter.
    before, _, last = text.rpartition("\n")
    try:
        values = json.loads(last)
    except (ValueError, RecursionError):
        values = None
    reward = values.get("reward") if isinstance(values, dict) else None
    if not isinstance(values, dict) or (reward is None and "output" not in values):
        return CommandResult(output=text, reward=None, values={})
    if reward is not None and not is_finite_number(reward):
        # JSON's NaN and Infinity, which Python accepts, would poison the group's advantages.
        raise CallbackError(
            f"the command's last line must have a finite number as reward, got {shown(reward)}"
        )
    output = values.get("output", before.strip())
    return CommandResult(
        output=output if isinstance(output, str) else json.dumps(output, ensure_ascii=False),
        reward=None if reward is None else float(reward),
        values=values,
    )


def _split(command: str | Sequence[str]) -> list[str]:
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:  # an open quotation mark
        raise ConfigError(f"command={command!r} cannot be split into words: {error}") from error
    if not words or not all(isinstance(word, str) and word for word in words[:1]):
        raise ConfigError(f"command must name a program with its arguments, got {command!r}")
    return words


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and its process group; return when it has ended."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), KILL_AFTER_SECONDS)
    # Also after a normal end, because children left behind would keep calling the policy.
    _signal(process, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    await process.wait()


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform != "win32":
            # start_new_session makes the process id also the id of its group.
            os.killpg(process.pid, number)
        elif process.returncode is None:
            process.kill()


def _end_of(file: IO[bytes], size: int) -> str:
    """Return the last `size` bytes of a file as text."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - size))
    return file.read().decode("utf-8", "replace")
