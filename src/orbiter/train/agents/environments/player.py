"""Plays an environment: asks the policy, carries out its tool calls, until the episode ends."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from orbiter.train.agents.environments.environment import (
    Kind,
    first_messages,
    kind_of,
    reset_arguments,
    task_fields,
    tools_of,
)
from orbiter.train.agents.environments.tools import Tool, ToolError
from orbiter.train.agents.episode import OpenEpisode, current_episode
from orbiter.train.callback import call
from orbiter.train.chat.tool_calls import OPENING
from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import (
    CallbackError,
    DataError,
    TrainError,
    boundary,
    described,
    did_you_mean,
)

LIMITS = ("max_turns", "max_tokens", "context", "context_length_exceeded")
"""Codes of a refused call that end an episode in the normal way."""
UNREADABLE = (
    "Error: the tool call could not be read. Write one JSON object with a name and arguments "
    'between the tags: <tool_call>{"name": "...", "arguments": {...}}</tool_call>'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """The result of a played episode; rewards get it as `result`."""

    output: str
    """The text of the last answer; "" if the policy gave none."""
    reward: float | None
    """The value of `get_reward`; None if the environment does not define it."""
    messages: tuple[dict[str, Any], ...]
    """The whole conversation, tool results included."""
    environment: object
    """The environment, as the episode left it; None for a list of functions."""
    calls: int
    """The number of requested tool calls."""
    invalid_calls: int
    """Tool calls that could not be read, or named no tool, or had wrong arguments."""


class EnvironmentAgent:
    """An agent that plays an environment; `VeRLTrainer(environment=...)` runs it.

    It works wherever an agent does: `run_episode(EnvironmentAgent(Safe), task, live, seed=0)`.
    """

    def __init__(self, environment: object, *, system_prompt: str | None = None) -> None:
        """Check the environment; one is made for each episode.

        Args:
            environment: A class with `reset` and `get_reward` whose other public methods are
                tools, a function that makes such an object, or a list of tool functions.
            system_prompt: Put before the conversation, unless the task brings one.

        Raises:
            ConfigError: the environment cannot be played; the message names what is missing.
        """
        self.environment = environment
        self.kind: Kind = kind_of(environment)
        self.system_prompt = system_prompt

    @property
    def has_reward(self) -> bool | None:
        """Whether the environment gives a reward itself; None if only playing it shows that."""
        return self.kind.has_reward

    async def run(self, task: object) -> Played:
        """Play one episode.

        Raises:
            CallbackError: the environment itself raised, or its reward is not a number.
            DataError: the task lacks a field that `reset` asks for.
        """
        # Boundaries mark errors of the user's code as such.
        with boundary(f"making {self.kind.name}"):
            environment = await call(self.kind.make)
        try:
            fields = task_fields(task)
            observation = await self._reset(environment, fields)
            messages = first_messages(fields, observation, system=self.system_prompt)
            tools = {tool.name: tool for tool in tools_of(self.kind, environment)}
            play = _Play(environment, tools, messages)
            await play.to_the_end(current_episode())
            return Played(
                output=play.output,
                # Read after the last action and before `close`.
                reward=await self._reward(environment),
                messages=tuple(messages),
                environment=environment,
                calls=play.calls,
                invalid_calls=play.invalid,
            )
        finally:
            close = getattr(environment, "close", None)
            if callable(close):
                with boundary(f"{self.kind.name}.close()"):
                    await call(close)

    async def _reset(self, environment: object, fields: Mapping[str, Any]) -> object:
        if self.kind.functions:
            return None
        reset = getattr(environment, "reset", None)
        if not callable(reset):
            raise CallbackError(f"{self.kind.name} made {shown(environment)}, which has no reset()")
        arguments = reset_arguments(reset, fields)
        with boundary(f"{self.kind.name}.reset()"):
            return await _called(reset, **arguments)

    async def _reward(self, environment: object) -> float | None:
        get_reward = getattr(environment, "get_reward", None)
        if not callable(get_reward):
            return None
        with boundary(f"{self.kind.name}.get_reward()"):
            reward = await call(cast("Callable[[], object]", get_reward))
        if not is_finite_number(reward):
            raise CallbackError(
                f"{self.kind.name}.get_reward() must return a finite number, got {shown(reward)}"
            )
        return float(reward)


class _Play:
    """The conversation of one episode."""

    def __init__(
        self, environment: object, tools: Mapping[str, Tool], messages: list[dict[str, Any]]
    ) -> None:
        self._environment, self._tools, self._messages = environment, tools, messages
        self.output = ""
        self.calls = self.invalid = 0

    async def to_the_end(self, episode: OpenEpisode) -> None:
        """Ask and act until the policy only answers, the environment is done, or a limit ends it.

        The limits on turns and tokens are those of the session that answers.
        """
        # Checked before each turn: a reset may already have ended the episode.
        while not self._done():
            reply = await self._ask(episode)
            if reply is None:
                return
            self._messages.append(reply)
            self.output = reply.get("content") or ""
            calls = reply.get("tool_calls") or []
            if calls:
                for tool_call in calls:
                    await self._carry_out(tool_call)
            elif OPENING in self.output and self._tools:
                self.calls, self.invalid = self.calls + 1, self.invalid + 1
                self._messages.append({"role": "user", "content": UNREADABLE})
            else:
                observation = await self._answered(self.output)
                if observation is None:
                    return
                self._messages.append({"role": "user", "content": observation})

    def _done(self) -> bool:
        done = getattr(self._environment, "done", False)
        # A method named done is a tool, not a flag.
        return bool(done) and not callable(done)

    async def _ask(self, episode: OpenEpisode) -> dict[str, Any] | None:
        """Return the policy's message; None if a limit of the episode has been reached."""
        request: dict[str, Any] = {"model": "policy", "messages": self._messages}
        if self._tools:
            request["tools"] = [tool.described() for tool in self._tools.values()]
        response = await episode.handle(
            "/v1/chat/completions", {}, json.dumps(request, default=str).encode()
        )
        body = json.loads(b"".join([chunk async for chunk in response.chunks]))
        if response.status == 200:
            return cast("dict[str, Any]", body["choices"][0]["message"])
        error = body.get("error") or {}
        if response.status == 400 and error.get("code") in LIMITS:
            return None
        raise CallbackError(f"the policy refused the call: {error.get('message') or body}")

    async def _carry_out(self, tool_call: Mapping[str, Any]) -> None:
        function = tool_call.get("function") or {}
        name = str(function.get("name") or "")
        self.calls += 1
        try:
            text = await self._result(name, str(function.get("arguments") or "{}"))
        except ToolError as error:
            self.invalid += 1
            text = f"Error: {error}"
        except TrainError:
            # a package error, such as StateError after the episode, is not for the model
            raise
        # The user's tool: the model may react to it. Command-line parsers raise SystemExit.
        except (Exception, SystemExit) as error:
            text = f"Error: {described(error)}"
        self._messages.append(
            {"role": "tool", "tool_call_id": str(tool_call.get("id") or ""), "content": text}
        )

    async def _result(self, name: str, arguments: str) -> str:
        if name not in self._tools:
            known = ", ".join(self._tools) or "none"
            hint = did_you_mean(name, self._tools)
            raise ToolError(f"there is no tool {name!r}{hint}; the tools are: {known}")
        return await self._tools[name].run(arguments)

    async def _answered(self, text: str) -> str | None:
        """Pass an answer without a call to the environment; None ends the episode."""
        hook = getattr(self._environment, "on_answer", None)
        if not callable(hook):
            return None
        with boundary(f"{type(self._environment).__name__}.on_answer()"):
            observation = await call(cast("Callable[[str], object]", hook), text)
        if observation is None or isinstance(observation, str):
            return observation
        raise DataError(f"on_answer() must return a text or None, got {shown(observation)}")


async def _called(fn: Callable[..., object], **arguments: object) -> object:
    """Call a function with named arguments, a plain one in a thread."""
    if inspect.iscoroutinefunction(fn):
        return await fn(**arguments)
    return await call(lambda: fn(**arguments))
