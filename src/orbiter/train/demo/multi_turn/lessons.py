"""Solved conversations of `multi_turn_base`, turn by turn, to imitate before learning by doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orbiter.train.agents.environments import Tool
from orbiter.train.chat.tool_calls import write_call
from orbiter.train.demo.multi_turn.environment import MultiTurn
from orbiter.train.demo.multi_turn.tasks import MultiTurnTask, RightCall
from orbiter.train.trajectory import TrajectoryItem

DONE = "Done."
"""The answer that ends a turn."""


async def show_tasks(tasks: Sequence[MultiTurnTask]) -> list[TrajectoryItem]:
    """Return every turn of solved conversations, to imitate: the right calls, then "Done."."""
    items: list[TrajectoryItem] = []
    for task in tasks:
        world = MultiTurn(task.wheel)
        try:
            question: str | None = await world.reset(task.task_id)
            tools = {tool.name: tool for tool in world.offered_tools()}
            messages: list[dict[str, Any]] = []
            for calls in task.right:
                messages.append({"role": "user", "content": question})
                items += [await _shown_call(task, tools, messages, call) for call in calls]
                items.append(_item(task, tools, messages, DONE, None))
                messages.append({"role": "assistant", "content": DONE})
                question = await world.on_answer(DONE)
        finally:
            await world.close()
    return items


async def _shown_call(
    task: MultiTurnTask,
    tools: Mapping[str, Tool],
    messages: list[dict[str, Any]],
    right: RightCall,
) -> TrajectoryItem:
    """Carry out a right call; return it as an item, and append it and its result to `messages`."""
    tool = tools[right.name]
    # Right calls may be positional, and a model's calls name every argument.
    names = list(tool.parameters.get("properties", {}))
    arguments = dict(zip(names, right.positional, strict=False)) | right.named
    written = msgspec.json.encode(arguments).decode()
    call = {
        "id": f"call_{len(messages)}",
        "type": "function",
        "function": {"name": right.name, "arguments": written},
    }
    item = _item(task, tools, messages, write_call(call), [call])
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    result = await tool.run(written)
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    return item


def _item(
    task: MultiTurnTask,
    tools: Mapping[str, Tool],
    messages: Sequence[dict[str, Any]],
    action: str,
    calls: list[dict[str, Any]] | None,
) -> TrajectoryItem:
    return TrajectoryItem(
        task.questions[0],
        action,
        1.0,
        messages=list(messages),
        tools=[tool.described() for tool in tools.values()],
        tool_calls=calls,
        task_id=task.task_id,
        episode_id=task.task_id,
    )
