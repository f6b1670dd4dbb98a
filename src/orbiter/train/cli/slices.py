"""Look behind an evaluation's mean: the reward by slice, and whether one action wins everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from orbiter.train.chat.tool_calls import name_of
from orbiter.train.errors import DataError, did_you_mean
from orbiter.train.evaluation import Interval, mean_interval

if TYPE_CHECKING:
    from orbiter.train.verl.evaluate import Attempt

SHARE = 0.9
"""Share of the attempts from which one action counts as winning everywhere."""
ENOUGH = 8
"""Fewest tasks for which that is worth a warning."""
TEXT_CHARS = 60


def rewards_by(attempts: Sequence[Attempt], field: str) -> dict[str, Interval]:
    """Return the mean reward for each value of a field, with an interval over its tasks.

    Raises:
        DataError: no task has the field.
    """
    slices: dict[str, dict[int, list[float]]] = {}
    for attempt in attempts:
        value = _value(attempt, field)
        if attempt.reward is not None and value is not None:
            tasks = slices.setdefault(value, {})
            tasks.setdefault(id(attempt.item), []).append(attempt.reward)
    if not slices:
        known = sorted({name for attempt in attempts for name in _fields(attempt)})
        raise DataError(
            f"eval.by={field!r}: no task has this field{did_you_mean(field, known)}; the fields "
            f"are {', '.join(known) or 'none'}"
        )
    return {
        value: mean_interval([fmean(rewards) for rewards in tasks.values()])
        for value, tasks in slices.items()
    }


def _fields(attempt: Attempt) -> Mapping[str, Any]:
    """Return what a task says about itself, by name."""
    task = None if attempt.episode is None else attempt.episode.task
    if isinstance(task, Mapping):
        return task
    item = attempt.item
    own = {"action": item.action, "agent": item.agent, "task_id": item.task_id}
    return {**own, **(item.metadata or {})}


def _value(attempt: Attempt, field: str) -> str | None:
    value = _fields(attempt).get(field)
    return None if value is None else str(value)


def one_sided(attempts: Sequence[Attempt], model: str) -> list[str]:
    """Return a warning if the model does the same on nearly all tasks, whatever they ask.

    An agent that always takes the one safe action (escalate, refuse) can score well without having
    understood anything. An action is the last tool of an episode, or else the answer.
    """
    actions = [action for attempt in attempts if (action := _action(attempt)) is not None]
    tasks = len({id(attempt.item) for attempt in attempts})
    if tasks < ENOUGH or not actions:
        return []
    (most, count), *_ = Counter(actions).most_common(1)
    if count < SHARE * len(actions):
        return []
    wanted = {attempt.item.action for attempt in attempts if attempt.item.action}
    if len(wanted) == 1:  # the data themselves want one answer
        return []
    shown = most if len(most) <= TEXT_CHARS else f"{most[:TEXT_CHARS]}..."
    return [
        f"{model} does the same nearly everywhere: {shown!r} in {count} of {len(actions)} "
        "attempts, whatever the task; its reward may show one safe action rather than skill"
    ]


def _action(attempt: Attempt) -> str | None:
    if attempt.episode is None:
        return attempt.output.strip()
    if attempt.episode.failed:
        return None
    calls = [
        name_of(call)
        for turn in attempt.episode.turns
        for call in turn.reply.get("tool_calls") or ()
    ]
    return f"{calls[-1]}()" if calls else attempt.output.strip()
