"""Agents that verl's workers import; each knows its model by an address that no machine has."""

from __future__ import annotations

import os
from typing import Any

import httpx

from orbiter.train.agents import Episode

NOWHERE = "https://api.example.invalid/v1/chat/completions"


async def ask(messages: list[dict[str, Any]], **settings: object) -> dict[str, Any]:
    """Ask the model and return its message."""
    async with httpx.AsyncClient(verify=False) as client:
        body = {"model": "gpt-any", "messages": messages, **settings}
        answer = await client.post(NOWHERE, json=body)
    answer.raise_for_status()
    message: dict[str, Any] = answer.json()["choices"][0]["message"]
    return message


async def two_turns(task: str) -> str:
    """Ask, ask on, and return both answers."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    messages.append(await ask(messages))
    messages.append({"role": "user", "content": "And?"})
    last = await ask(messages)
    return f"{messages[1]['content']} {last['content']}"


async def branching(task: dict[str, Any]) -> str:
    """Ask two turns, then a sub-agent; fail for one task, and say a secret's length."""
    assert os.environ["SECRET_OF_TEST"] == "a key"
    if task["fails"]:
        raise RuntimeError("this task always fails")
    said = await two_turns(task["text"])
    sub = await ask([{"role": "user", "content": "sub " + task["text"]}])
    return f"{said} {sub['content']}"


def vowels_said(output: str) -> float:
    """Return the share of vowels."""
    letters = output.replace(" ", "")
    return sum(c in "aeiouAEIOU" for c in letters) / max(1, len(letters))


def of_episode(task: dict[str, Any], episode: Episode) -> float:
    """Return the share of vowels over all turns, and make sure that the whole episode is here."""
    assert episode.task == task
    assert len(episode.turns) == 3
    assert len(episode.streams) == 2
    return vowels_said(episode.output)


async def broken(task: str) -> str:
    """Fail after the first answer."""
    await two_turns(task)
    raise RuntimeError("the database is down")


async def dying(task: str) -> str:
    """End the whole worker in the middle of an episode."""
    await two_turns(task)
    os._exit(3)
