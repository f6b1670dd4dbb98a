"""Agents of several frameworks as one agent for verl: the task names the framework."""

from __future__ import annotations

import inspect
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
