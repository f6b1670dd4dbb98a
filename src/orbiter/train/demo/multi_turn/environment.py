"""One conversation of `multi_turn_base` as an environment: its tools, its user, its checker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orbiter.train.agents.environments import Tool
from orbiter.train.agents.environments.tools import ToolError, decode_arguments
from orbiter.train.demo.multi_turn import apis
from orbiter.train.demo.multi_turn.tasks import MODULES, MultiTurnTask, task_of, tool_schemas
from orbiter.train.errors import CallbackError, StateError

SECONDS = 20.0
"""How long a call may take before its process is killed."""
CALLS = 20
"""The maximum number of calls in one user turn; the leaderboard stops a model after as many
steps."""
LINE_BYTES = 64 << 20
"""Longest answer of the child process."""


class MultiTurn:
    """The environment: pass the class as `environment=`; a task is `{"task_id": ...}`.

    The policy calls tools, and its first answer without a call ends a turn of the user. The reward
    is the share of turns, counted from the first, that were right without a wrong one before; a
    conversation counts as solved on the leaderboard exactly when that is 1. A wrong turn therefore
    settles the reward, and the episode ends there.
    """

    def __init__(self, wheel: Path | None = None) -> None:
        """Store the arguments; the process starts with `reset`.

        Args:
            wheel: The leaderboard's wheel; None means the cached one, which pip fetches once.
        """
        self._wheel = wheel
        self._task: MultiTurnTask | None = None
        self._child: _Child | None = None
        self._turn = self._right = self._calls = 0
        self._wrong = False
        self.done = False

    async def reset(self, task_id: str) -> str:
        """Begin a conversation; return the user's first request.

        Raises:
            DataError: there is no such conversation.
        """
        self._task = task = await asyncio.to_thread(task_of, task_id, self._wheel)
        self._schemas = await asyncio.to_thread(tool_schemas, task)
        self._child = await _Child.start(task)
        return task.questions[0]

    def offered_tools(self) -> Sequence[Tool]:
        """Return the tools of the conversation's classes."""
        return [self._tool(schema) for schema in self._schemas]

    async def on_answer(self, text: str) -> str | None:
        """End a turn of the user; return the next request, or None after a wrong or the last turn.

        Whatever follows a wrong turn cannot change the reward: its tokens would take most of the
        time of a weak policy's episode, and only add noise to the gradient.
        """
        del text  # the leaderboard judges the state, not the text of the answer
        task, child = self._begun()
        right = await child.check(task.right[self._turn])
        # A wrong turn spoils the later ones, whose state builds on it.
        self._wrong |= not right
        self._right += not self._wrong
        self._turn, self._calls = self._turn + 1, 0
        if self._wrong or self._turn == len(task.questions):
            return None
        return task.questions[self._turn]

    def get_reward(self) -> float:
        """Return the share of turns that were right before the first wrong one."""
        task, _ = self._begun()
        return self._right / len(task.questions)

    async def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            await self._child.close()

    def _begun(self) -> tuple[MultiTurnTask, _Child]:
        if self._task is None or self._child is None:
            raise StateError("reset() must be called first")
        return self._task, self._child

    def _tool(self, schema: Mapping[str, Any]) -> Tool:
        name: str = schema["name"]

        async def run(arguments: str) -> str:
            given = decode_arguments(arguments, dict[str, Any], name)
            self._calls += 1
            if self._calls > CALLS:
                self.done = True
                raise ToolError(f"more than {CALLS} calls for one request; it ends here")
            _, child = self._begun()
            try:
                return await child.call(name, given)
            except TimeoutError as error:
                self.done = True
                raise ToolError(f"{name} took longer than {SECONDS:g} s; it ends here") from error

        return Tool(
            name=name,
            description=schema["description"],
            parameters=schema["parameters"],
            run=run,
        )


class _Child:
    """The process that runs the tools of one conversation."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, task: MultiTurnTask) -> _Child:
        """Start the process, and make the objects that its calls change."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # neither the current folder nor PYTHONPATH is searched for modules
            apis.__file__,
            str(task.wheel),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            # asyncio's default of 64 KiB would cut off the content of a long file.
            limit=LINE_BYTES,
            # The code of the tools comes from the wheel, and must not find the keys of this
            # machine.
            env={},
        )
        child = cls(process)
        begin = {
            name: {"module": MODULES[name], "start": task.start[name]} for name in task.classes
        }
        try:
            await child._ask({"begin": begin})
        except BaseException:
            await child.close()
            raise
        return child

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool.

        Raises:
            TimeoutError: it took too long; the process was killed.
        """
        return str((await self._ask({"call": name, "arguments": arguments}))["result"])

    async def check(self, right: Sequence[Sequence[Any]]) -> bool:
        """Return whether the turn that is ending was right."""
        return bool((await self._ask({"check": right}))["right"])

    async def close(self) -> None:
        """End the process."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        streams = self._process
        assert streams.stdin is not None
        assert streams.stdout is not None
        line = b""
        try:
            streams.stdin.write(json.dumps(request).encode() + b"\n")
            await streams.stdin.drain()
            line = await asyncio.wait_for(streams.stdout.readline(), SECONDS)
        # What the child would answer later would be taken for the answer to the next request.
        except TimeoutError:
            await self.close()
            raise
        except (ConnectionError, ValueError):  # it has ended, or wrote too much
            pass
        if not line:
            await self.close()
            raise CallbackError(
                f"the process that runs the tools ended with code {streams.returncode}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer
