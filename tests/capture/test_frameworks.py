"""Real small agents of four frameworks, each with a tool, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orbiter.train import TrajectoryDataset, TrajectoryItem
from orbiter.train.capture import record
from orbiter.train.capture.hooks import langgraph, openai_agents, pydantic_ai, smolagents
from tests.capture.server import Deed, ModelServer
from tests.children import run_child

Foreign = Any
"""What belongs to a framework."""
KEY = "sk-test-0123456789"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def added(a: int, b: int) -> int:
    if b > 3:
        raise ValueError("b is too large")
    return a + b


# One agent a framework. Each imports its framework itself: that takes seconds.


def agents_chat(server: ModelServer, *, streamed: bool = False) -> object:
    import agents
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=server.url, api_key=KEY)
    model = agents.OpenAIChatCompletionsModel("m", client)
    return _run_agents(client, model, streamed=streamed)


def agents_responses(server: ModelServer, *, streamed: bool = False) -> object:
    import agents
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=server.url, api_key=KEY)
    return _run_agents(client, agents.OpenAIResponsesModel("m", client), streamed=streamed)


def _run_agents(client: Foreign, model: Foreign, *, streamed: bool) -> object:
    import agents

    agents.set_trace_processors([])
    agents.set_tracing_disabled(False)  # other tests of this process switch it off
    openai_agents.install.cache_clear()
    openai_agents.install()
    tool = agents.function_tool(added, name_override="add")
    agent = agents.Agent(name="adder", instructions="Add.", model=model, tools=[tool])

    async def go() -> object:
        async with client:
            return await ask()

    async def ask() -> object:
        if not streamed:
            return (await agents.Runner.run(agent, "What is 2 + 3?")).final_output
        result = agents.Runner.run_streamed(agent, "What is 2 + 3?")
        async for _ in result.stream_events():
            pass
        return result.final_output

    return asyncio.run(go())


def pydantic_chat(server: ModelServer, *, streamed: bool = False) -> object:
    from openai import AsyncOpenAI
    from pydantic_ai import Agent, ModelRetry
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    client = AsyncOpenAI(base_url=server.url, api_key=KEY)
    model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
    agent = Agent(
        model, name="adder", instructions="Add.", capabilities=[pydantic_ai.capability()], retries=3
    )

    @agent.tool_plain(name="add")
    def add(a: int, b: int) -> int:
        try:
            return added(a, b)
        except ValueError as error:
            raise ModelRetry(str(error)) from error

    async def go() -> object:
        async with client:
            return await ask()

    async def ask() -> object:
        if not streamed:
            return (await agent.run("What is 2 + 3?")).output
        async with agent.run_stream("What is 2 + 3?") as result:
            return await result.get_output()

    return asyncio.run(go())


def graph_chat(server: ModelServer, *, streamed: bool = False) -> object:
    graph, asked = _graph(server, streamed=streamed)
    return graph.invoke(asked)["messages"][-1].content


def graph_async(server: ModelServer, *, streamed: bool = False) -> object:
    graph, asked = _graph(server, streamed=streamed)
    return asyncio.run(graph.ainvoke(asked))["messages"][-1].content


def _graph(server: ModelServer, *, streamed: bool) -> tuple[Foreign, Foreign]:
    from langchain_core.messages import HumanMessage
    from langchain_core.runnables import RunnableLambda
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition
    from pydantic import SecretStr

    langgraph.install()
    add = tool("add", description="Add.")(added)
    model = ChatOpenAI(model="m", base_url=server.url, api_key=SecretStr(KEY), streaming=streamed)
    bound = model.bind_tools([add])
    graph = StateGraph(MessagesState)

    def ask(state: Foreign) -> Foreign:
        return {"messages": [bound.invoke(state["messages"])]}

    async def ask_async(state: Foreign) -> Foreign:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph.add_node("adder", RunnableLambda(ask, ask_async))
    graph.add_node("tools", ToolNode([add], handle_tool_errors=True))
    graph.add_edge(START, "adder")
    graph.add_conditional_edges("adder", tools_condition)
    graph.add_edge("tools", "adder")
    return graph.compile(), {"messages": [HumanMessage("What is 2 + 3?")]}


def smol_chat(server: ModelServer, *, streamed: bool = False) -> object:
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: One.
            b: Another.
        """
        return added(a, b)

    model = OpenAIModel("m", api_base=server.url, api_key=KEY)
    agent = ToolCallingAgent(
        tools=[tool(add)],
        model=model,
        name="adder",
        description="adds",
        step_callbacks=[smolagents.on_step],
        stream_outputs=streamed,
        verbosity_level=0,
    )
    return agent.run("What is 2 + 3?")


def smol_async(server: ModelServer, *, streamed: bool = False) -> object:
    """Run the agent as its makers advise where the rest is async: in a thread."""

    async def go() -> object:
        return await asyncio.to_thread(smol_chat, server, streamed=streamed)

    return asyncio.run(go())


AGENTS: dict[str, Callable[..., object]] = {
    "openai-agents, chat": agents_chat,
    "openai-agents, responses": agents_responses,
    "pydantic-ai": pydantic_chat,
    "langgraph": graph_chat,
    "langgraph, async": graph_async,
    "smolagents": smol_chat,
    "smolagents, async": smol_async,
}
each_agent = pytest.mark.parametrize("run", AGENTS.values(), ids=AGENTS.keys())
warnings_of_theirs = pytest.mark.filterwarnings("ignore")


def captured(server: ModelServer, run: Callable[..., object], **how: object) -> TrajectoryDataset:
    dataset = TrajectoryDataset()
    with record(dataset, agent="unnamed", task_id="sum") as episode:
        run(server, **how)
        episode.reward(1.0)
    return dataset


def texts_of(item: TrajectoryItem) -> str:
    return " ".join(str(message.get("content")) for message in item.messages or ())


@warnings_of_theirs
@each_agent
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_every_call_of_an_agent_is_captured(
    server: ModelServer, run: Callable[..., object], streamed: bool
) -> None:
    dataset = captured(server, run, streamed=streamed)

    assert len(dataset) == len(server.seen) == 2
    asking, telling = dataset
    assert asking.action == '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    assert asking.tool_calls is not None
    assert asking.tool_calls[0]["id"] == "call_0_0"
    assert asking.tools is not None
    assert any(tool["function"]["name"] == "add" for tool in asking.tools)  # type: ignore[index]
    assert "What is 2 + 3?" in asking.state
    assert telling.state.startswith(asking.state)
    assert "5" in telling.action
    assert [item.metadata["output_tokens"] for item in dataset] == [7, 7]
    assert bool(asking.metadata.get("stream")) == bool(server.seen[0].body.get("stream"))


@warnings_of_theirs
@each_agent
def test_the_hooks_tell_who_asked_and_how_the_tools_fared(
    server: ModelServer, run: Callable[..., object]
) -> None:
    dataset = captured(server, run)

    assert [item.agent for item in dataset] == ["adder", "adder"]
    runs = dataset[0].metadata["tool_runs"]
    assert isinstance(runs, list)
    assert [(told["id"], told["name"]) for told in runs] == [("call_0_0", "add")]
    assert "5" in runs[0]["result"]
    assert runs[0]["seconds"] >= 0


@warnings_of_theirs
@each_agent
def test_parallel_calls_of_a_tool_keep_apart_also_where_one_fails(
    server: ModelServer, run: Callable[..., object]
) -> None:
    server.calls_at_once = 2
    dataset = captured(server, run)

    assert len(dataset) == len(server.seen)
    assert [call["id"] for call in dataset[0].tool_calls or ()] == ["call_0_0", "call_0_1"]
    assert dataset[0].action.count("<tool_call>") == 2
    runs = dataset[0].metadata["tool_runs"]
    assert isinstance(runs, list)
    assert sorted(told["id"] for told in runs) == ["call_0_0", "call_0_1"]
    failed = next(told for told in runs if told["id"] == "call_0_1")
    assert failed["error"]


@warnings_of_theirs
@each_agent
def test_a_retried_request_is_one_item_and_a_failed_attempt(
    server: ModelServer, run: Callable[..., object]
) -> None:
    server.plan = lambda number: "status_500" if number == 0 else "answer"
    dataset = captured(server, run)

    assert len(server.seen) == 3
    assert len(dataset) == 2
    failed = dataset[0].metadata["failed_attempts"]
    assert isinstance(failed, list)
    assert failed[0]["status"] == 500
    assert "try again" in failed[0]["error"]


@warnings_of_theirs
@each_agent
@pytest.mark.parametrize("deed", ["break_off", "error_event"])
def test_an_error_in_the_middle_of_a_stream_is_kept_whatever_the_framework_makes_of_it(
    server: ModelServer, run: Callable[..., object], deed: Deed
) -> None:
    server.plan = lambda number: deed if number == 0 else "answer"
    dataset = TrajectoryDataset()
    with record(dataset) as episode:
        with contextlib.suppress(Exception):  # raised, retried or answered anew: as each does
            run(server, streamed=True)
        episode.reward(0.0)

    assert server.seen[0].body["stream"]
    assert len(dataset) + len(episode.failures) == len(server.seen)
    broken = dataset[0]
    assert broken.metadata["error"]
    assert broken.tool_calls is not None
    assert broken.tool_calls[0]["function"]["name"] == "add"  # type: ignore[index]
    assert all("error" not in item.metadata for item in dataset[1:])


def test_importing_the_hooks_imports_no_framework() -> None:
    program = (
        "import sys\n"
        "from orbiter.train.capture import record\n"
        "from orbiter.train.capture.hooks import langgraph, openai_agents\n"
        "from orbiter.train.capture.hooks import pydantic_ai, smolagents\n"
        "heavy = {'agents', 'pydantic_ai', 'langgraph', 'langchain_core', 'smolagents', 'openai',"
        " 'httpx', 'httpx2', 'starlette', 'torch', 'numpy'}\n"
        "print(heavy & set(sys.modules))\n"
    )
    done = run_child([sys.executable, "-c", program], check=True)
    assert done.stdout.strip() == "set()"
