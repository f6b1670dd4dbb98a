"""Agents of several frameworks as one agent for verl: the task names the framework."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from orbiter.train.agents.episode import as_text
from tests.agents.test_framework_training import AGENTS

NAMES = [agent.__name__ for agent in AGENTS]


async def any_framework(task: dict[str, Any]) -> str:
    """Run the agent of this name, unchanged, and return what it says as text."""
    agent = next(agent for agent in AGENTS if agent.__name__ == task["framework"])
    said: Any = agent(task["text"])
    return as_text(await said if inspect.isawaitable(said) else said)


def different(output: str) -> float:
    """Tell any two outputs apart, so that every group has something to teach."""
    return (sum(output.encode("utf-8", "replace")) % 97) / 97


async def plain_openai(text: str) -> str:
    """Two turns with openai's client."""
    from openai import AsyncOpenAI

    messages: list[Any] = [{"role": "user", "content": text}]
    said = []
    async with AsyncOpenAI() as client:
        for _ in range(2):
            answer = await client.chat.completions.create(model="gpt-5", messages=messages)
            said.append(str(answer.choices[0].message.content))
            messages += [
                {"role": "assistant", "content": said[-1]},
                {"role": "user", "content": "And?"},
            ]
    return " ".join(said)


async def pydantic_ai(text: str) -> str:
    """Two runs, the second with the first one's history."""
    from pydantic_ai import Agent

    agent = Agent("openai-chat:gpt-5")
    first = await agent.run(text)
    second = await agent.run("And?", message_history=first.all_messages())
    return f"{first.output} {second.output}"


async def openai_agents(text: str) -> str:
    """Two runs of the OpenAI Agents SDK.

    Through chat completions: with Responses it raises whenever an answer is cut off.
    """
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    model = agents.OpenAIChatCompletionsModel("gpt-5", AsyncOpenAI())
    agent = agents.Agent(name="sayer", model=model)
    first = await agents.Runner.run(agent, text)
    given: Any = [*first.to_input_list(), {"role": "user", "content": "And?"}]
    second = await agents.Runner.run(agent, given)
    return f"{first.final_output} {second.final_output}"


async def langgraph(text: str) -> str:
    """A graph that thinks twice."""
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, MessagesState, StateGraph

    model = ChatOpenAI(model="gpt-5")

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    async def ask_on(state: MessagesState) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "And?"}]}

    graph = StateGraph(MessagesState)
    graph.add_node("first", think)
    graph.add_node("ask", ask_on)
    graph.add_node("second", think)
    for edge in ((START, "first"), ("first", "ask"), ("ask", "second"), ("second", END)):
        graph.add_edge(*edge)
    start: Any = {"messages": [{"role": "user", "content": text}]}
    messages = (await graph.compile().ainvoke(start))["messages"]
    return f"{messages[1].text} {messages[3].text}"


async def sub_agents(text: str) -> str:
    """Two turns, then a sub-agent with a history of its own."""
    said = await plain_openai(text)
    return f"{said} {await plain_openai(f'sub {text}')}"


TWO_TURNS: dict[str, Callable[[str], Awaitable[str]]] = {
    agent.__name__: agent
    for agent in (plain_openai, pydantic_ai, openai_agents, langgraph, sub_agents)
}


async def two_turns_of(task: dict[str, Any]) -> str:
    """Run the framework of the task."""
    return await TWO_TURNS[task["framework"]](f"{task['framework']}: {task['text']}")
