"""A tiny policy, a tiny policy that calls tools, and a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.serve import PolicyServer
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.trajectory import TrajectoryItem


@pytest.fixture(scope="session")
def policy() -> Policy:
    loaded = load_model("tiny", device="cpu")
    made = make_policy(loaded.model, loaded.tokenizer, device="cpu")
    assert made.path == "fast"
    return made


@pytest.fixture
async def server(policy: Policy) -> AsyncIterator[PolicyServer]:
    async with PolicyServer(policy, name="tiny", max_rows=8) as opened:
        yield opened


@pytest.fixture
async def client(server: PolicyServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as opened:
        yield opened


ADD: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
}
"""A tool, in OpenAI's form."""
CALLING = "".join(
    f'{said}<tool_call>{{"name": "add", "arguments": {{"a": {a}}}}}</tool_call>'
    for said, a in [("Well: ", 1), ("", 2)]
)
"""What the trained caller says when it is asked to add."""


@pytest.fixture(scope="session")
def caller() -> Policy:
    """A tiny model that was trained to call a tool twice at once, and to answer with the result."""
    asked: dict[str, object] = {"role": "user", "content": "Add"}
    made = {"function": {"name": "add", "arguments": '{"a": 1}'}, "id": "1", "type": "function"}
    later: list[dict[str, object]] = [
        asked,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    items = [TrajectoryItem("", CALLING, messages=[asked], tools=[ADD])] * 3
    items += [TrajectoryItem("", "It is 3", messages=later, tools=[ADD])]
    return asyncio.run(_learned_by_heart(items))


async def _learned_by_heart(items: list[TrajectoryItem]) -> Policy:
    """Train until both answers come out exactly: which seed does it depends on the processor."""
    for seed in range(5):
        config = SFTConfig(
            model="tiny",
            epochs=60,
            batch_size=4,
            learning_rate=4e-3,
            seed=seed,
            device="cpu",
            dtype="float32",
            progress=False,
        )
        trainer = SFTTrainer(config, dataset=items)
        await trainer.train()
        said = await trainer.generate([items[0], items[-1]], max_response_length=200)
        if said == [CALLING, "It is 3"]:
            return await trainer.policy()
    raise AssertionError(f"none of 5 seeds learned the two answers; the last said {said}")
