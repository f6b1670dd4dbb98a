"""Reads the tasks of an agent, which may be any objects. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from orbiter.train.agents.plain import content_of
from orbiter.train.engine.tasks import Tasks
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryItem


@dataclass(frozen=True, slots=True)
class AgentTasks(Tasks):
    """Tasks in the form that the agent gets, each with an item for rewards and the run's folder."""

    tasks: Sequence[object] = ()

    @override
    def select(self, indices: Sequence[int]) -> AgentTasks:
        items = [self.items[i] for i in indices]
        return AgentTasks(items, [[]] * len(items), tasks=[self.tasks[i] for i in indices])


def as_tasks(dataset: object) -> AgentTasks:
    """Return the tasks that an agent works on.

    Raises:
        DataError: the data set is not iterable, or is empty.
    """
    # A text or a dict is iterable, and would become one task for each character or key.
    if isinstance(dataset, str | bytes | Mapping) or not isinstance(dataset, Iterable):
        raise DataError(
            "the tasks of an agent must be a list of its inputs, or a TrajectoryDataset, "
            f"got {type(dataset).__name__}"
        )
    tasks = list(dataset)
    if not tasks:
        raise DataError("there are no tasks: the agent has nothing to work on")
    # No prompts: what the model reads is up to the agent.
    return AgentTasks([_as_item(task) for task in tasks], [[]] * len(tasks), tasks=tasks)


def _as_item(task: object) -> TrajectoryItem:
    """Describe a task by an item; a resumed run identifies its tasks by it."""
    if isinstance(task, TrajectoryItem):
        return task
    task_id = task.get("task_id") if isinstance(task, Mapping) else None
    return TrajectoryItem(_text(task), "", task_id=task_id if isinstance(task_id, str) else None)


def _text(task: object) -> str:
    if isinstance(task, str):
        return task
    try:
        return json.dumps(task, ensure_ascii=False, default=content_of)
    except (TypeError, ValueError, RecursionError):
        # Keys that JSON does not have, or a task that contains itself.
        return str(task)
