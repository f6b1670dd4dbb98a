"""Parts of the items, such as one for each task type: where did the new model get worse?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orbiter.train.errors import DataError, did_you_mean
from orbiter.train.trajectory import TrajectoryItem

TASK_TYPES = ("task_type", "category")
"""Fields that name the type of a task, used if no field is given."""
MOST_SLICES = 100
"""More different values than this are not types of tasks."""


def task_fields(task: object) -> Mapping[str, Any]:
    """Return what a task says about itself, by name."""
    if isinstance(task, Mapping):
        return task
    if not isinstance(task, TrajectoryItem):
        return {}
    own = {"action": task.action, "agent": task.agent, "task_id": task.task_id}
    return {**own, **(task.metadata or {})}


def slice_field(tasks: Sequence[object], by: str | None) -> str | None:
    """Return the field to slice by: the given one, or a known name that every task has, or None.

    Raises:
        DataError: no task has the given field, or it has too many values.
    """
    if by is None:
        return next(
            (
                name
                for name in TASK_TYPES
                if all(_value(task, name) is not None for task in tasks)
                # One value makes no slices, and very many are not types of tasks.
                and 1 < len({_value(task, name) for task in tasks}) <= MOST_SLICES
            ),
            None,
        )
    values = {value for task in tasks if (value := _value(task, by)) is not None}
    if not values:
        known = sorted({name for task in tasks for name in task_fields(task)})
        raise DataError(
            f"by={by!r}: no task has this field{did_you_mean(by, known)}; the fields are "
            f"{', '.join(known) or 'none'}"
        )
    if len(values) > MOST_SLICES:
        raise DataError(
            f"by={by!r}: the field has {len(values)} different values, and at most {MOST_SLICES} "
            "slices can be compared; choose a field such as the task's type"
        )
    return by


def slices_of(tasks: Sequence[object], by: str) -> dict[str, list[int]]:
    """Return the indices of the tasks with each value of a field, by value, in order."""
    slices: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        value = _value(task, by)
        if value is not None:
            slices.setdefault(value, []).append(index)
    return dict(sorted(slices.items()))


def _value(task: object, field: str) -> str | None:
    value = task_fields(task).get(field)
    return None if value is None else str(value)
