"""Agents for tests: they know their model only by an address that no machine has."""

from __future__ import annotations

from typing import Any

import httpx
import torch

from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer

NOWHERE = "https://api.example.invalid/v1/chat/completions"
ADD: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
}


async def ask(messages: list[dict[str, Any]], **settings: object) -> dict[str, Any]:
    """Ask the model and return its message."""
    async with httpx.AsyncClient() as client:
        body = {"model": "gpt-any", "messages": messages, **settings}
        answer = await client.post(NOWHERE, json=body)
    answer.raise_for_status()
    message: dict[str, Any] = answer.json()["choices"][0]["message"]
    return message


async def two_turns(task: str) -> str:
    """Ask, ask on, and return the last answer."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    messages.append(await ask(messages))
    messages.append({"role": "user", "content": "And?"})
    return str((await ask(messages))["content"])


async def branching(task: str) -> str:
    """Ask two turns, then forget the first answer (a compacted history), then ask a sub-agent."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    messages.append(await ask(messages))
    messages.append({"role": "user", "content": "And?"})
    await ask(messages)
    messages[1] = {"role": "assistant", "content": "..."}
    await ask(messages)
    return str((await ask([{"role": "user", "content": "sub " + task}]))["content"])


def spread(output: str) -> float:
    """Tell any two outputs apart, so that every group has something to teach."""
    return (sum(output.encode("utf-8", "replace")) % 97) / 97


def tiny(**settings: object) -> VeRLConfig:
    small: dict[str, Any] = {
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 2,
        "group_size": 3,
        "max_response_length": 5,
        "learning_rate": 1e-3,
        "progress": False,
    }
    return VeRLConfig(**(small | settings))


def trainer(agent: object, fn: Any = spread, **settings: object) -> VeRLTrainer:  # noqa: ANN401
    return VeRLTrainer(tiny(**settings), [RewardSpec(name="probe", fn=fn)], agent=agent)


async def weights(of: VeRLTrainer) -> dict[str, torch.Tensor]:
    policy = await of.policy()
    return {name: p.detach().clone() for name, p in policy.named_trainable().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
