"""Clients of OpenEnv servers as environments: `reset` and `step` over the network.

    from echo_env import EchoEnv, EchoAction

    VeRLTrainer(config, environment=openenv(lambda: EchoEnv(base_url="http://127.0.0.1:8000")))

The policy acts through one tool, `step`, whose arguments are the fields of the client's action
class. A client that lists tools itself (`MCPToolClient`) has these tools instead. They are called
through `step` as well: only a step has a reward and an end. The episode's reward is the sum of the
rewards of its steps. Tested with openenv 0.10.0.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Any, cast

from orbiter.train.agents.environments.tools import Tool, ToolError, decode_arguments, tool_text
from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import CallbackError, ConfigError

Foreign = Any
"""An object of OpenEnv, which need not be installed."""

NOT_SHOWN = ("reward", "done", "metadata")
"""Fields of an observation that the policy does not read."""
STEP = "step"
NOTHING_SHOWN = "{}"
"""An observation without fields that the policy reads."""


def openenv(
    connect: Callable[[], object],
    action: type | None = None,
    *,
    show: Callable[[Any], str] | None = None,
) -> Callable[[], OpenEnvEpisode]:
    """Return a function that makes an environment, to be passed as `environment=`.

    The fields of a task are passed to the client's `reset`, but for `prompt`, which the policy
    reads before the first observation.

    Args:
        connect: Makes a client, one for each episode, such as `lambda: EchoEnv(base_url=...)`.
        action: The client's action class; None takes it from the client's type parameters.
        show: Returns an observation as text; None writes its fields as JSON, without reward, done
            and metadata.

    Raises:
        ConfigError: `connect` is not a function, or `action` is not a pydantic model.
    """
    if not callable(connect):
        raise ConfigError(
            f"connect must be a function that makes a client, one for each episode, got "
            f"{shown(connect)}"
        )
    if action is not None and not hasattr(action, "model_json_schema"):
        raise ConfigError(f"action must be an action class of OpenEnv, got {shown(action)}")

    def make() -> OpenEnvEpisode:
        return OpenEnvEpisode(connect(), action, show or show_observation)

    make.__name__ = "openenv"
    make.has_reward = True  # type: ignore[attr-defined] # `kind_of` reads it
    return make


class OpenEnvEpisode:
    """One episode with one client."""

    def __init__(self, client: Foreign, action: type | None, show: Callable[[Any], str]) -> None:
        """Wrap a client that is not connected yet; created by `openenv`."""
        # a blocking client wraps this async one
        self._client: Foreign = getattr(client, "_async", client)
        self._show = show
        self._action: Foreign = action or _action_of(type(self._client))
        self._tools: list[Tool] = []
        self._reward = 0.0
        self.done = False

    async def reset(self, **fields: object) -> str:
        """Connect, begin, and return the first observation."""
        fields.pop("prompt", None)
        await _awaited(self._client.connect())
        observation = self._seen(await _awaited(self._client.reset(**fields)))
        if not callable(getattr(self._client, "list_tools", None)):
            self._tools = [self._step_tool()]
            return observation
        listed = await _awaited(self._client.list_tools())
        if not listed:  # the client also returns no tools if the server could not be reached
            raise CallbackError(f"the server of {type(self._client).__name__} lists no MCP tools")
        call_action = import_module("openenv.core.env_server.mcp_types").CallToolAction
        self._tools = [self._listed_tool(each, call_action) for each in listed]
        return "" if observation == NOTHING_SHOWN else observation

    def offered_tools(self) -> Sequence[Tool]:
        """Return the tools, which are known after the reset."""
        return self._tools

    def get_reward(self) -> float:
        """Return the sum of the rewards of the steps."""
        return self._reward

    async def close(self) -> None:
        """Disconnect."""
        await _awaited(self._client.close())

    def _step_tool(self) -> Tool:
        kind = self._action
        if kind is None:
            raise ConfigError(
                f"the action class of {type(self._client).__name__} is not known; pass it: "
                "openenv(connect, EchoAction)"
            )
        schema = kind.model_json_schema()
        schema.get("properties", {}).pop("metadata", None)
        description = (inspect.getdoc(kind) or "").strip() or "Act in the environment."

        async def run(arguments: str) -> str:
            try:
                action = kind.model_validate_json(arguments or "{}")
            except ValueError as error:
                # The model's mistake, so its message goes back to the model.
                raise ToolError(f"wrong arguments for {STEP}: {error}") from error
            return self._seen(await _awaited(self._client.step(action)))

        return Tool(name=STEP, description=description, parameters=schema, run=run)

    def _listed_tool(self, listed: Foreign, call_action: Foreign) -> Tool:
        name = str(listed.name)

        async def run(arguments: str) -> str:
            given = decode_arguments(arguments, dict[str, Any], name)
            action = call_action(tool_name=name, arguments=given)
            result = await _awaited(self._client.step(action))
            self._count(result.reward)
            self.done = bool(result.done)
            return _tool_answer(result.observation)

        schema = listed.input_schema or {"type": "object", "properties": {}}
        return Tool(name=name, description=str(listed.description), parameters=schema, run=run)

    def _seen(self, result: Foreign) -> str:
        """Record a step's reward and end; return its observation as text."""
        self._count(result.reward)
        self.done = bool(result.done)
        return self._show(result.observation)

    def _count(self, reward: object) -> None:
        if reward is None:
            return
        if not is_finite_number(reward):
            raise CallbackError(f"the server's reward is {shown(reward)}, not a finite number")
        self._reward += float(reward)


def show_observation(observation: Foreign) -> str:
    """Return an observation as text: its only text, or else its fields as JSON."""
    fields = observation
    if callable(getattr(observation, "model_dump", None)):
        fields = observation.model_dump(mode="json")
    if not isinstance(fields, dict):
        return tool_text(fields)
    shown_fields = {name: value for name, value in fields.items() if name not in NOT_SHOWN}
    # A single text is shown without JSON around it, which only costs tokens.
    texts = [value for value in shown_fields.values() if isinstance(value, str)]
    return texts[0] if len(shown_fields) == len(texts) == 1 else tool_text(shown_fields)


def _tool_answer(observation: Foreign) -> str:
    """Return the answer of an MCP tool as text.

    Raises:
        ToolError: the tool failed; its message is for the model.
    """
    error = getattr(observation, "error", None)
    if error is not None:
        raise ToolError(str(getattr(error, "message", error)))
    result = getattr(observation, "result", None)
    if not isinstance(result, dict):
        return tool_text(getattr(result, "data", result))
    content = [part for part in result.get("content") or () if isinstance(part, dict)]
    texts = [str(part["text"]) for part in content if "text" in part]
    # Both spellings occur: Python's client uses is_error, the wire format isError.
    if result.get("is_error") or result.get("isError"):
        raise ToolError("\n".join(texts) or "the tool failed")
    if result.get("data") is not None or not texts:
        return tool_text(result.get("data", result))
    return "\n".join(texts)


def _action_of(client: type) -> type | None:
    """Return the action class in `class EchoEnv(EnvClient[EchoAction, ...])`."""
    for base in (base for each in client.__mro__ for base in getattr(each, "__orig_bases__", ())):
        for argument in typing.get_args(base)[:1]:
            if isinstance(argument, type) and hasattr(argument, "model_json_schema"):
                return argument
    return None


async def _awaited(result: object) -> Foreign:
    return await cast("Awaitable[object]", result) if inspect.isawaitable(result) else result
