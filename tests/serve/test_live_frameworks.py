"""Unchanged agents of the frameworks, hard-wired to a provider, on a live policy.

What the policy says is scripted (it calls a tool, then answers with the result), so that every
framework plays two turns; the log probabilities are the model's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train.capture.transport import answered_by
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.thread import work
from orbiter.train.serve import batching
from orbiter.train.serve.live import LivePolicy
from orbiter.train.serve.reply import DrawnToken
from orbiter.train.serve.rows import AnswerRow
from tests.serve.test_live import assert_exact

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own

CALL = 'Well: <tool_call>{"name":"add", "arguments":{"b": 3,  "a":2}}</tool_call>'
"""A call in a spelling that no framework keeps."""
FINAL = "It is 5"


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    """Let the policy call the tool first and answer with its result then."""
    end = policy.tokenizer.eos_token_id
    result = policy.tokenizer("<|bos|>tool\n", add_special_tokens=False).input_ids

    def draw(logits: Tensor, rows: Sequence[AnswerRow]) -> list[DrawnToken]:
        scores = logits.float().log_softmax(dim=-1)
        drawn = []
        for place, row in enumerate(rows):
            prompt = row.reply.prompt_ids
            last = "".join(map(chr, prompt))
            answered = "".join(map(chr, result)) in last
            script = [*(FINAL if answered else CALL).encode(), end]
            token = script[len(row.choice.tokens)]
            drawn.append(DrawnToken(token, float(scores[place, token]), []))
        return drawn

    monkeypatch.setattr(batching, "draw", draw)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")


async def with_openai(_: None) -> str:
    from openai import AsyncOpenAI

    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {}}}
    messages: list[Any] = [{"role": "user", "content": "2 + 3?"}]
    async with AsyncOpenAI() as client:
        create: Any = client.chat.completions.create
        while True:
            message = (await create(model="gpt-5", messages=messages, tools=[tool])).choices[0]
            messages.append(message.message.model_dump(exclude_none=True))
            calls = message.message.tool_calls or []
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": "5"} for call in calls
            ]
            if not calls:
                return str(message.message.content)


def with_anthropic(_: None) -> str:
    """A synchronous client, streamed."""
    from anthropic import Anthropic

    tool: Any = {"name": "add", "input_schema": {"type": "object"}}
    messages: list[Any] = [{"role": "user", "content": "2 + 3?"}]
    with Anthropic() as client:
        while True:
            asked: Any = {"model": "claude", "messages": messages, "max_tokens": 100}
            with client.messages.stream(**asked, tools=[tool]) as stream:
                message = stream.get_final_message()
            messages.append({"role": "assistant", "content": message.content})
            calls = [block for block in message.content if block.type == "tool_use"]
            if not calls:
                (text,) = message.content
                return str(getattr(text, "text", ""))
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": "5"} for call in calls
            ]
            messages.append({"role": "user", "content": results})


async def with_pydantic_ai(_: None) -> str:
    from pydantic_ai import Agent

    return str((await Agent("openai-chat:gpt-5", tools=[add]).run("2 + 3?")).output)


async def with_openai_agents(_: None) -> str:
    """Its default asks through Responses."""
    import agents

    agents.set_tracing_disabled(True)
    agent = agents.Agent(name="adder", model="gpt-5", tools=[agents.function_tool(add)])
    result = agents.Runner.run_streamed(agent, "2 + 3?")
    async for _event in result.stream_events():
        pass
    return str(result.final_output)


async def with_langgraph(_: None) -> str:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    tools = [tool(add)]
    model = ChatOpenAI(model="gpt-5").bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    start: Any = {"messages": [{"role": "user", "content": "2 + 3?"}]}
    return str((await graph.compile().ainvoke(start))["messages"][-1].content)


Play = Callable[[None], Awaitable[str]] | Callable[[None], str]


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    "play",
    [with_openai, with_anthropic, with_pydantic_ai, with_openai_agents, with_langgraph],
)
async def test_two_turns_of_an_unchanged_agent_are_one_stream(policy: Policy, play: Play) -> None:
    async with LivePolicy(policy, max_new_tokens=200) as live:
        session = live.session(seed=0)
        with answered_by(session):
            outcome: Any = (
                await asyncio.to_thread(play, None) if play is with_anthropic else await play(None)  # type: ignore[misc]
            )
        assert outcome == FINAL
        assert [turn.continues for turn in session.turns] == [None, 0]
        assert bytes(session.turns[0].token_ids[:-1]).decode() == CALL
        assert session.turns[1].drift  # a re-rendering writes the call in another spelling
        await work(assert_exact, policy, session)


@pytest.mark.usefixtures("scripted")
async def test_smolagents_asks_from_its_own_threads(policy: Policy) -> None:
    """It rewrites calls as text of its own, which begins a new stream at every turn."""
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    model = OpenAIModel("gpt-5", api_key="none")
    agent = ToolCallingAgent(tools=[tool(add)], model=model, max_steps=2, verbosity_level=0)
    agent.prompt_templates["system_prompt"] = "Add."
    async with LivePolicy(policy, max_new_tokens=200) as live:
        session = live.session(seed=0)
        with answered_by(session):
            await asyncio.to_thread(agent.run, "2 + 3?")
        assert len(session.turns) >= 2
        assert torch.tensor(session.turns[0].logprobs).isfinite().all()
        await work(assert_exact, policy, session)
