"""A real OpenEnv server in this process, and its clients as environments."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orbiter.train.agents import run_episode
from orbiter.train.agents.environments import EnvironmentAgent, Played
from orbiter.train.agents.environments.openenv import openenv
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import ConfigError
from orbiter.train.http_server import make_server
from orbiter.train.net import bind
from orbiter.train.serve.live import LivePolicy
from tests.agents.scripted import scripted, tool_call

NOT_INSTALLED = "openenv is not installed: pip install openenv"
core: Any = pytest.importorskip("openenv.core", reason=NOT_INSTALLED)
openenv_server: Any = pytest.importorskip("openenv.core.env_server", reason=NOT_INSTALLED)
types: Any = pytest.importorskip("openenv.core.env_server.types", reason=NOT_INSTALLED)
results: Any = pytest.importorskip("openenv.core.client_types", reason=NOT_INSTALLED)
State, GenericEnvClient = types.State, core.GenericEnvClient

pytestmark = pytest.mark.filterwarnings("ignore")  # OpenEnv's and its websockets'


class Dial(types.Action):  # type: ignore[misc] # not installed where mypy runs
    """Turn the dial of the safe."""

    digits: str
    times: int = 1


class Seen(types.Observation):  # type: ignore[misc] # as above
    message: str = ""


class Safe(openenv_server.Environment):  # type: ignore[misc] # as above
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **given: Any) -> Seen:  # noqa: ANN401 - as the base
        self.code = str(given.get("code", "12"))
        self._state = State(episode_id=episode_id, step_count=0)
        return Seen(message="Open the safe.")

    def step(self, action: Dial, timeout_s: float | None = None, **_: Any) -> Seen:  # noqa: ANN401 - as the base
        opened = action.digits == self.code
        return Seen(message="open" if opened else "closed", reward=float(opened), done=opened)

    @property
    def state(self) -> Any:  # noqa: ANN401 - a state
        return self._state


class SafeClient(core.EnvClient[Dial, Seen, State]):  # type: ignore[misc] # as above
    def _step_payload(self, action: Dial) -> dict[str, Any]:
        return dict(action.model_dump())

    def _parse_result(self, payload: dict[str, Any]) -> Any:  # noqa: ANN401 - a result
        return results.StepResult(
            Seen(**payload["observation"]), payload.get("reward"), payload.get("done", False)
        )

    def _parse_state(self, payload: dict[str, Any]) -> Any:  # noqa: ANN401 - a state
        return State(**payload)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with served(openenv_server.create_app(Safe, Dial, Seen, max_concurrent_envs=8)) as at:
        yield at


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:  # noqa: ANN401 - an ASGI app
    with bind("127.0.0.1", 0) as listener:
        server = make_server(app, extra="capture", closing_seconds=1.0)
        server.capture_signals = contextlib.nullcontext
        # Its own protocol of HTTP refuses WebSockets, which OpenEnv's clients use.
        server.config.ws = "websockets-sansio"
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


def answers(*texts: str) -> Any:  # noqa: ANN401 - a script
    def answer(prompt: str, _: int) -> str:
        return texts[min(prompt.count("<|bos|>assistant\n") - 1, len(texts) - 1)]

    return answer


@pytest.mark.parametrize("kind", ["typed", "blocking", "generic"])
async def test_a_client_is_played_through_its_action(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, url: str, kind: str
) -> None:
    connect = {
        "typed": lambda: SafeClient(base_url=url),
        "blocking": lambda: SafeClient(base_url=url).sync(),
        "generic": lambda: GenericEnvClient(base_url=url),
    }[kind]
    environment = openenv(connect, Dial if kind == "generic" else None)
    wrong, right = tool_call("step", digits=12), tool_call("step", digits="34")
    scripted(monkeypatch, policy, answers(tool_call("step", digits="1"), wrong, right))
    async with LivePolicy(policy, max_new_tokens=80) as live:
        runs = [
            run_episode(EnvironmentAgent(environment), {"code": "34"}, live, seed=seed)
            for seed in range(3)
        ]
        episodes = await asyncio.gather(*runs)
    for episode in episodes:
        assert episode.error is None
        played = episode.result
        assert isinstance(played, Played)
        assert played.reward == 1.0
        assert len(episode.turns) == 3  # done ends it
        texts = [m["content"] for m in played.messages if m["role"] in ("user", "tool")]
        assert texts[:2] == ["Open the safe.", "closed"]
        assert "wrong arguments for step" in texts[2]
        assert played.invalid_calls == 1
        tools = episode.turns[0].tools
        assert tools is not None
        function = tools[0]["function"]
        assert function["description"] == "Turn the dial of the safe."
        assert sorted(function["parameters"]["properties"]) == ["digits", "times"]


async def test_a_server_that_is_down_is_a_failed_episode(policy: Policy) -> None:
    environment = openenv(lambda: SafeClient(base_url="http://127.0.0.1:9", connect_timeout_s=1))
    async with LivePolicy(policy) as live:
        episode = await run_episode(EnvironmentAgent(environment), {}, live, seed=0)
    assert episode.stop_reason == "agent_error"
    assert "ConnectionError" in str(episode.error)


async def test_what_cannot_be_connected_is_refused(policy: Policy) -> None:
    with pytest.raises(ConfigError, match="connect must be a function that makes a client"):
        openenv("http://127.0.0.1:8000")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be an action class"):
        openenv(lambda: None, dict)


async def test_an_unknown_action_class_is_named(policy: Policy, url: str) -> None:
    environment = openenv(lambda: GenericEnvClient(base_url=url))
    async with LivePolicy(policy) as live:
        episode = await run_episode(EnvironmentAgent(environment), {}, live, seed=0)
    assert "action class of GenericEnvClient is not known; pass it" in str(episode.error)


@pytest.fixture
async def vault() -> AsyncIterator[str]:
    """A server whose tools are listed over MCP; opening the vault is rewarded and ends it."""
    fastmcp: Any = pytest.importorskip("fastmcp", reason="fastmcp is not installed")
    mcp_environment: Any = pytest.importorskip("openenv.core.env_server.mcp_environment")
    mcp_types: Any = pytest.importorskip("openenv.core.env_server.mcp_types")

    class Vault(mcp_environment.MCPEnvironment):  # type: ignore[misc] # not installed where mypy runs
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            mcp = fastmcp.FastMCP("vault")
            self.code, self.opened = "12", False

            def dial(digits: str) -> str:
                """Dial digits."""
                self.opened = digits == self.code
                return "open" if self.opened else "closed"

            def kick(times: int) -> dict[str, int]:
                """Kick it."""
                if times > 9:
                    raise ValueError("it hurts")
                return {"dents": times}

            mcp.tool(dial)
            mcp.tool(kick)
            super().__init__(mcp)

        def reset(
            self,
            seed: int | None = None,
            episode_id: str | None = None,
            **given: Any,  # noqa: ANN401 - as the base
        ) -> Any:  # noqa: ANN401 - an observation
            self.code, self.opened = str(given.get("code", "12")), False
            return types.Observation()

        async def step_async(self, action: Any, timeout_s: Any = None, **given: Any) -> Any:  # noqa: ANN401 - as the base
            seen = await super().step_async(action, timeout_s, **given)
            if isinstance(action, mcp_types.CallToolAction):
                seen.reward, seen.done = float(self.opened), self.opened
            return seen

        def _step_impl(self, action: Any, timeout_s: Any = None, **_: Any) -> Any:  # noqa: ANN401 - as the base
            raise NotImplementedError

        @property
        def state(self) -> Any:  # noqa: ANN401 - a state
            return State(episode_id=None, step_count=0)

    app = openenv_server.create_app(
        Vault, mcp_types.CallToolAction, mcp_types.CallToolObservation, max_concurrent_envs=8
    )
    async with served(app) as at:
        yield at


@pytest.mark.parametrize("blocking", [False, True])
async def test_tools_that_are_listed_over_mcp_are_called_with_rewards(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, vault: str, blocking: bool
) -> None:
    mcp_client: Any = pytest.importorskip("openenv.core.mcp_client")
    made = mcp_client.MCPToolClient
    environment = openenv(lambda: made(base_url=vault).sync() if blocking else made(base_url=vault))
    script = [
        tool_call("dial", digits="1"),
        tool_call("kick", times=3),
        tool_call("kick", times=10),
        tool_call("dial", digits="34"),
    ]
    scripted(monkeypatch, policy, answers(*script))
    task = {"prompt": "Open the vault.", "code": "34"}
    async with LivePolicy(policy, max_new_tokens=90) as live:
        runs = [
            run_episode(EnvironmentAgent(environment), task, live, seed=seed) for seed in range(3)
        ]
        episodes = await asyncio.gather(*runs)
    for episode in episodes:
        assert episode.error is None
        played = episode.result
        assert isinstance(played, Played)
        assert played.reward == 1.0
        assert len(episode.turns) == len(script)  # done ends it
        texts = [m["content"] for m in played.messages if m["role"] in ("user", "tool")]
        assert texts[:3] == ["Open the vault.", "closed", '{"dents":3}']
        assert "it hurts" in texts[3]
        tools = episode.turns[0].tools
        assert tools is not None
        assert [tool["function"]["name"] for tool in tools] == ["dial", "kick"]
        assert list(tools[0]["function"]["parameters"]["properties"]) == ["digits"]
