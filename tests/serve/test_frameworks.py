"""Real agents of four frameworks on a served SmolLM2: every call captured, token ids and all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import httpx2
import pytest

from orbiter.train.capture import record
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.prompt import render
from orbiter.train.engine.sample import sample
from orbiter.train.serve import PolicyServer
from orbiter.train.serve.batching import Batcher
from orbiter.train.serve.reply import DrawSettings
from orbiter.train.trajectory import TrajectoryDataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]
QUESTION = "Use the tool to add 2 and 3."
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def smollm2() -> Policy:
    loaded = load_model("smollm2-135m", device="cpu")
    return make_policy(loaded.model, loaded.tokenizer, device="cpu")


@pytest.fixture
async def server(smollm2: Policy) -> AsyncIterator[PolicyServer]:
    async with PolicyServer(smollm2, name="smollm2", return_token_ids=True) as opened:
        yield opened


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: One.
        b: Another.
    """
    return a + b


# One agent a framework, as its own documentation would write it. What the model makes of the
# question is not the point: it may call the tool, or talk, or run into the agent's limit of turns.


async def openai_agents(url: str, *, streamed: bool) -> None:
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        agent = agents.Agent(
            name="adder",
            instructions="You add numbers.",
            model=agents.OpenAIChatCompletionsModel("smollm2", client),
            model_settings=agents.ModelSettings(temperature=0, max_tokens=MAX_TOKENS),
            tools=[agents.function_tool(add)],
        )
        if not streamed:
            await agents.Runner.run(agent, QUESTION, max_turns=2)
            return
        result = agents.Runner.run_streamed(agent, QUESTION, max_turns=2)
        async for _ in result.stream_events():
            pass


async def pydantic_ai(url: str, *, streamed: bool) -> None:
    from openai import AsyncOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        agent = Agent(
            OpenAIChatModel("smollm2", provider=OpenAIProvider(openai_client=client)),
            instructions="You add numbers.",
            tools=[add],
            model_settings={"temperature": 0, "max_tokens": MAX_TOKENS},
        )
        if not streamed:
            await agent.run(QUESTION)
            return
        async with agent.run_stream(QUESTION) as result:
            await result.get_output()


async def langgraph(url: str) -> None:
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    tools = [tool(add)]
    settings: dict[str, Any] = {"api_key": "none", "temperature": 0, "max_tokens": MAX_TOKENS}
    model = ChatOpenAI(model="smollm2", base_url=url, **settings)
    bound = model.bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("adder", think)
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=True))
    graph.add_edge(START, "adder")
    graph.add_conditional_edges("adder", tools_condition)
    graph.add_edge("tools", "adder")
    asked = MessagesState(messages=[HumanMessage(QUESTION)])
    await graph.compile().ainvoke(asked, {"recursion_limit": 6})
    await model.root_async_client.close()


async def smolagents(url: str) -> None:
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    model = OpenAIModel(
        "smollm2", api_base=url, api_key="none", temperature=0, max_tokens=MAX_TOKENS
    )
    agent = ToolCallingAgent(tools=[tool(add)], model=model, max_steps=1, verbosity_level=0)
    await asyncio.to_thread(agent.run, QUESTION)
    model.client.close()


AGENTS: dict[str, Callable[[str], Awaitable[None]]] = {
    "openai-agents": partial(openai_agents, streamed=False),
    "openai-agents, streamed": partial(openai_agents, streamed=True),
    "pydantic-ai": partial(pydantic_ai, streamed=False),
    "pydantic-ai, streamed": partial(pydantic_ai, streamed=True),
    "langgraph": langgraph,
    "smolagents, sync": smolagents,
}


@pytest.mark.parametrize("name", AGENTS)
async def test_every_call_of_an_agent_is_captured_with_the_tokens_that_were_sampled(
    smollm2: Policy, server: PolicyServer, name: str
) -> None:
    dataset = TrajectoryDataset()
    with record(dataset, agent="adder", task_id="sum") as episode:
        await AGENTS[name](server.url)
        episode.reward(1.0)

    async with httpx2.AsyncClient() as plain:
        health = await plain.get(server.url.removesuffix("/v1") + "/health")
    assert len(dataset) == health.json()["asked"] >= 1
    assert dataset[0].tools is not None
    for item in dataset:
        assert item.prompt_token_ids == render(smollm2.tokenizer, item)
        assert item.token_ids is not None
        assert item.logprobs is not None
        assert 0 < len(item.logprobs) == len(item.token_ids) <= MAX_TOKENS
        text = smollm2.tokenizer.decode(item.token_ids, skip_special_tokens=True)
        assert item.tool_calls or item.action == text
        assert bool(item.metadata.get("stream")) == name.endswith("streamed")
        assert "error" not in item.metadata


async def test_greedy_answers_are_the_engines_own_alone_and_together(smollm2: Policy) -> None:
    questions = ["What is the capital of France?", "Say hello.", "Name a colour.", "Why is it so?"]
    prompts = [render(smollm2.tokenizer, question) for question in questions]
    want = sample(smollm2, prompts, max_new_tokens=MAX_TOKENS, temperature=0)
    sampling = DrawSettings(max_new_tokens=MAX_TOKENS, temperature=0)
    async with Batcher(smollm2, max_rows=3, max_waiting=9) as loop:
        alone = loop.submit(prompts[0], sampling)
        await alone.finished()
        together = [loop.submit(prompt, sampling) for prompt in prompts]
        for reply in together:
            await reply.finished()
    assert alone.choices[0].text.known == want[0].text
    assert [reply.choices[0].text.known for reply in together] == [each.text for each in want]
