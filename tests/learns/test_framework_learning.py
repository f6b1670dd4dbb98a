"""Do unchanged agents of four frameworks learn the two-turn task of `test_agent_learning`?

The model that begins has imitated the frameworks' own prompts, token for token: one episode of each
kind is recorded with scripted answers, and the traces are drawn from those. It imitates them until
the start is fair: the tool pays when it is called, and the task is not solved.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest

from orbiter.train.agents import run_episode
from orbiter.train.engine.batch import collate
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.objective import ImitationObjective
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.update import logprob, update
from orbiter.train.serve.live import LivePolicy
from tests.agents.scripted import scripted
from tests.learns.test_agent_learning import (
    CALLS,
    GUESSES,
    LETTERS,
    NAMES,
    Trace,
    imitate_copying,
    learned,
    start,
)

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]
NAMED_IF_CALLED = 0.4
"""Least chance that a start names the letter after a call; with 1/8, a call is only a guess."""

EACH_NAMED_IF_CALLED = 0.2
"""The same for the letter that it names most rarely."""

CALLED_AND_NAMED = (0.05, 0.1)
"""Least and greatest share of a start's episodes that call the tool and name its letter."""

LETTER: ContextVar[str] = ContextVar("LETTER")
TaskAgent = Callable[[dict[str, str]], Awaitable[object]]


async def f() -> str:
    """Look."""
    return LETTER.get()


def openai_agent() -> TaskAgent:
    from openai import AsyncOpenAI

    client = AsyncOpenAI()
    tool: Any = {"type": "function", "function": {"name": "f", "description": "Look."}}

    async def run(task: dict[str, str]) -> str:
        messages: list[Any] = [{"role": "user", "content": "?"}]
        create: Any = client.chat.completions.create
        while True:
            message = (await create(model="gpt-5", messages=messages, tools=[tool])).choices[0]
            messages.append(message.message.model_dump(exclude_none=True))
            calls = message.message.tool_calls or []
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": task["letter"]}
                for call in calls
            ]
            if not calls:
                return str(message.message.content)

    return run


def pydantic_ai_agent() -> TaskAgent:
    from pydantic_ai import Agent

    agent = Agent("openai-chat:gpt-5", tools=[f])

    async def run(task: dict[str, str]) -> object:
        LETTER.set(task["letter"])
        return await agent.run("?")

    return run


def openai_agents_agent() -> TaskAgent:
    """Its default asks through Responses."""
    import agents

    agents.set_tracing_disabled(True)
    agent = agents.Agent(name="looker", model="gpt-5", tools=[agents.function_tool(f)])

    async def run(task: dict[str, str]) -> object:
        LETTER.set(task["letter"])
        return await agents.Runner.run(agent, "?")

    return run


def langgraph_agent() -> TaskAgent:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    tools = [tool(f)]
    model = ChatOpenAI(model="gpt-5").bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    compiled = graph.compile()

    async def run(task: dict[str, str]) -> str:
        LETTER.set(task["letter"])
        begin: Any = {"messages": [{"role": "user", "content": "?"}]}
        return str((await compiled.ainvoke(begin))["messages"][-1].text)

    return run


AGENTS = [openai_agent, pydantic_ai_agent, openai_agents_agent, langgraph_agent]


async def recorded(agent: TaskAgent) -> Trace:
    """Play an episode of each kind with scripted answers; return what draws one at random."""
    loaded = load_model("tiny", device="cpu", seed=0)
    policy = make_policy(loaded.model, loaded.tokenizer, device="cpu")
    plan: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, policy, lambda prompt, _: plan[prompt.count("<|bos|>assistant\n") - 1])
        async with LivePolicy(policy, max_new_tokens=8) as live:

            async def play(letter: str, *answers: str) -> Rollout:
                plan[:] = answers
                episode = await run_episode(agent, {"letter": letter}, live, seed=0)
                assert episode.output == answers[-1], episode
                assert len(episode.turns) == len(answers)
                (stream,) = episode.streams
                return Rollout(
                    stream.token_ids,
                    stream.mask,
                    [0.0] * len(stream.mask),
                    stream.prompt_length,
                )

            named = {letter: await play(letter, "f()", letter) for letter in LETTERS}
            missed = {letter: await play(letter, "f()", "#") for letter in LETTERS}
            guessed = [await play("a", letter) for letter in LETTERS]
            none = await play("a", "#")

    def trace(_: Policy, draw: random.Random, calls: float, names: float) -> Rollout:
        letter = draw.choice(LETTERS)
        if draw.random() < calls:
            return (named if draw.random() < names else missed)[letter]
        return draw.choice(guessed) if draw.random() < GUESSES else none

    return trace


class Start(NamedTuple):
    """What a model does before it is trained by reward."""

    calls: float
    """Chance that it calls the tool."""
    names: float
    """Chance that it names the letter after a call, as the mean over the letters."""
    rarest: float
    """The same for the letter that it names most rarely."""

    @property
    def fair(self) -> bool:
        """Whether the tool pays when it is called, and the task is not solved."""
        names = self.names >= NAMED_IF_CALLED and self.rarest >= EACH_NAMED_IF_CALLED
        least, greatest = CALLED_AND_NAMED
        return names and least <= self.calls * self.names <= greatest


def measured(policy: Policy, trace: Trace) -> Start:
    """Score the solved episode of each letter: the tokens of its call, then those of its letter."""
    draw, solved = random.Random(0), dict[tuple[int, ...], Rollout]()
    while len(solved) < len(LETTERS):
        episode = trace(policy, draw, 1.0, 1.0)
        solved[tuple(episode.token_ids)] = episode
    batch = collate(list(solved.values()))
    rows = [row[mask] for row, mask in zip(logprob(policy, batch), batch.mask, strict=True)]
    calls = [float(row[:-2].sum().exp()) for row in rows]
    names = [float(row[-2:].sum().exp()) for row in rows]  # the letter and the end of the turn
    return Start(fmean(calls), fmean(names), min(names))


def imitate_fairly(policy: Policy, seed: int, trace: Trace) -> None:
    """Learn to copy the tool's letter, then the traces until the start is fair.

    The first updates on the traces can undo the copying. A call may then be worth less than a
    guess, and training by reward may rightly give up the tool.
    """
    draw = random.Random(seed)
    # Twice as much never learns to copy in some of these prompts, which are long: the loss stays at
    # that of a guess among few letters. It also undoes more of the copying later.
    optimiser = make_optimiser(policy, learning_rate=5e-4, weight_decay=0.0)
    imitate_copying(policy, draw, optimiser, trace)
    # Anew, without the gradients' averages of the copying.
    optimiser = make_optimiser(policy, learning_rate=5e-4, weight_decay=0.0)
    for n in range(600):
        batch = collate([trace(policy, draw, CALLS, NAMES) for _ in range(32)])
        update(policy, batch, optimiser, ImitationObjective())
        if n + 1 >= 60 and (now := measured(policy, trace)).fair:
            print(f"fair after {n + 1} updates: {now}")  # noqa: T201 - shown if the test fails
            return
    raise AssertionError(f"the traces left no fair start after {n + 1} updates: {now}")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("make", AGENTS)
async def test_an_unchanged_agent_learns_to_use_what_its_tool_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], TaskAgent],
    algorithm: str,
    seed: int,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    agent = make()
    teach = partial(imitate_fairly, trace=await recorded(agent))
    model = await start(tmp_path / "model", seed, teach)
    # A framework that raises for an answer, as pydantic-ai does for an empty one, is the policy's
    # doing: left out, such episodes become all of them in some seeds.
    # With the 5e-4 of `test_agent_learning`, or without a bonus for entropy, some seeds settle on
    # a wrong answer to one letter of eight before they have tried the right one often enough.
    settings = {"on_agent_error": 0.0, "learning_rate": 3e-4, "ent_coef": 0.01, "epochs": 80}
    before, after = await learned(model, algorithm, seed, agent, **settings)
    assert before < 0.2
    assert after > 0.9
