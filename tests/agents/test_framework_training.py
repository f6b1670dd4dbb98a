"""One GRPO step through unchanged agents of the frameworks, whole and streamed, over three APIs.

What the policy says is scripted (it calls a tool or gives up, then answers), so that every
framework plays real turns and the group has something to learn; the log probabilities are the
model's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Any

import pytest
import torch

from orbiter.train.agents import Episode
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.thread import work
from tests.agents.playing import equal, trainer, weights
from tests.agents.scripted import scripted

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own

CALL = 'Well: <tool_call>{"name":"add", "arguments":{"b": 3,  "a":2}}</tool_call>'
"""A call in a spelling that no framework keeps."""
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def answer(prompt: str, seed: int) -> str:
    """Call the tool in about half of the attempts, and answer with its result then."""
    if "<|bos|>tool\n5" in prompt:
        return "It is 5"
    return "No idea" if seed % 2 else CALL


async def openai_chat(task: str) -> str:
    from openai import AsyncOpenAI

    tool = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
    messages: list[Any] = [{"role": "user", "content": task}]
    async with AsyncOpenAI() as client:
        create: Any = client.chat.completions.create
        while True:
            message = (await create(model="gpt-5", messages=messages, tools=[tool])).choices[0]
            messages.append(message.message.model_dump(exclude_none=True))
            calls = message.message.tool_calls or []
            messages += [{"role": "tool", "tool_call_id": c.id, "content": "5"} for c in calls]
            if not calls:
                return str(message.message.content)


async def openai_chat_streamed(task: str) -> str:
    from openai import AsyncOpenAI

    tool = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
    messages: list[Any] = [{"role": "user", "content": task}]
    async with AsyncOpenAI() as client:
        chat: Any = client.chat.completions
        while True:
            async with chat.stream(model="gpt-5", messages=messages, tools=[tool]) as stream:
                message = (await stream.get_final_completion()).choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            calls = message.tool_calls or []
            messages += [{"role": "tool", "tool_call_id": c.id, "content": "5"} for c in calls]
            if not calls:
                return str(message.content)


async def openai_responses(task: str) -> str:
    from openai import AsyncOpenAI

    tool = {"type": "function", "name": "add", "parameters": SCHEMA}
    given: list[Any] = [{"role": "user", "content": task}]
    async with AsyncOpenAI() as client:
        create: Any = client.responses.create
        while True:
            response = await create(model="gpt-5", input=given, tools=[tool])
            given += response.output
            calls = [item for item in response.output if item.type == "function_call"]
            given += [
                {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
                for call in calls
            ]
            if not calls:
                return str(response.output_text)


def anthropic_messages(task: str, *, streamed: bool = False) -> str:
    """A synchronous client, which blocks its thread."""
    from anthropic import Anthropic

    tool: Any = {"name": "add", "input_schema": SCHEMA}
    messages: list[Any] = [{"role": "user", "content": task}]
    with Anthropic() as client:
        asked: Any = {"model": "claude", "messages": messages, "max_tokens": 100, "tools": [tool]}
        while True:
            if streamed:
                with client.messages.stream(**asked) as stream:
                    message: Any = stream.get_final_message()
            else:
                message = client.messages.create(**asked)
            messages.append({"role": "assistant", "content": message.content})
            calls = [block for block in message.content if block.type == "tool_use"]
            if not calls:
                return "".join(getattr(block, "text", "") for block in message.content)
            results = [{"type": "tool_result", "tool_use_id": c.id, "content": "5"} for c in calls]
            messages.append({"role": "user", "content": results})


def anthropic_streamed(task: str) -> str:
    return anthropic_messages(task, streamed=True)


async def pydantic_ai(task: str) -> object:
    from pydantic_ai import Agent

    return await Agent("openai-chat:gpt-5", tools=[add]).run(task)


async def pydantic_ai_streamed(task: str) -> object:
    from pydantic_ai import Agent

    async def listen(_context: object, events: AsyncIterable[object]) -> None:
        async for _event in events:
            pass

    agent = Agent("openai-chat:gpt-5", tools=[add])
    return await agent.run(task, event_stream_handler=listen)


async def pydantic_ai_responses(task: str) -> object:
    from pydantic_ai import Agent

    return await Agent("openai-responses:gpt-5", tools=[add]).run(task)


async def openai_agents(task: str) -> object:
    """Its default asks through Responses."""
    import agents

    agents.set_tracing_disabled(True)
    agent = agents.Agent(name="adder", model="gpt-5", tools=[agents.function_tool(add)])
    return await agents.Runner.run(agent, task)


async def openai_agents_streamed(task: str) -> object:
    import agents

    agents.set_tracing_disabled(True)
    agent = agents.Agent(name="adder", model="gpt-5", tools=[agents.function_tool(add)])
    result = agents.Runner.run_streamed(agent, task)
    async for _event in result.stream_events():
        pass
    return result


async def openai_agents_chat(task: str) -> object:
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    model = agents.OpenAIChatCompletionsModel("gpt-5", AsyncOpenAI())
    agent = agents.Agent(name="adder", model=model, tools=[agents.function_tool(add)])
    return await agents.Runner.run(agent, task)


async def langgraph(task: str, **settings: Any) -> str:  # noqa: ANN401 - ChatOpenAI's
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    tools = [tool(add)]
    model = ChatOpenAI(model="gpt-5", **settings).bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    start: Any = {"messages": [{"role": "user", "content": task}]}
    return str((await graph.compile().ainvoke(start))["messages"][-1].text)


async def langgraph_streamed(task: str) -> str:
    return await langgraph(task, streaming=True)


async def langgraph_responses(task: str) -> str:
    return await langgraph(task, use_responses_api=True)


AGENTS: list[Callable[[str], object]] = [
    *(openai_chat, openai_chat_streamed, openai_responses),
    *(anthropic_messages, anthropic_streamed),
    *(pydantic_ai, pydantic_ai_streamed, pydantic_ai_responses),
    *(openai_agents, openai_agents_streamed, openai_agents_chat),
    *(langgraph, langgraph_streamed, langgraph_responses),
]


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_step_trains_an_unchanged_agent_on_token_exact_streams(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, agent: Callable[[str], object]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    seen: list[Episode] = []

    def solved(output: str, episode: Episode) -> float:
        seen.append(episode)
        return float(output == "It is 5")

    settings: dict[str, Any] = {"batch_size": 1, "group_size": 8, "max_response_length": 100}
    run = trainer(agent, fn=solved, **settings)
    scripted(monkeypatch, await run.policy(), answer)
    before = await weights(run)
    await run.train(["2 + 3?"])
    row = run.history[0]
    assert row["failed"] == 0
    assert 0 < row["reward"] < 1
    assert row["grad_norm"] > 0
    assert not equal(before, await weights(run))
    assert {len(episode.turns) for episode in seen} == {1, 2}

    def check_streams() -> None:
        for episode in seen:
            (stream,) = episode.streams  # the second turn keeps the tokens of the first
            drawn = [token for turn in episode.turns for token in turn.token_ids]
            trained = [t for t, m in zip(stream.token_ids, stream.mask, strict=True) if m]
            assert trained == drawn
            ids = torch.tensor([stream.token_ids])
            with torch.no_grad():  # `policy` is the same model, untrained
                logits = policy.model(ids, use_cache=False).logits[0].float()
            exact = logits[:-1].log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0]
            mask = torch.tensor(stream.mask[1:])
            sampled = torch.tensor(stream.logprobs[1:])
            torch.testing.assert_close(sampled[mask], exact[mask], atol=1e-4, rtol=0)

    await work(check_streams)
