"""Difficulty pools: tasks that were always or never solved are asked less often.

A group whose samples all got the same reward teaches nothing. The task of such a group is put into
the pool of solved or of unsolved tasks, and from then on takes only a share of its turns; other
tasks take the rest. It leaves the pool once its samples get different rewards. The pools are part
of the run's position, so a resumed run continues with the same tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from orbiter.train.engine.session import Position
from orbiter.train.engine.tasks import shuffled
from orbiter.train.seeding import sub_random
from orbiter.train.verl.config import VeRLConfig

Pool = Literal["solved", "unsolved"]


class StepTasks(NamedTuple):
    """The tasks of a step, and where the next step begins."""

    places: list[int]
    """Numbers of the tasks, each once."""
    cursor: int
    """Turns that have been given out since the start, passed over or not."""
    passed_over: int
    """Turns of this step that went to another task."""


def choose(config: VeRLConfig, position: Position, step: int, count: int) -> StepTasks:
    """Choose the tasks of a step.

    Without pools this is the epoch's next batch. With pools, turns are given out in the order of
    the shuffled epochs, one epoch after the other; a task of a pool takes its turn with the pool's
    rate, drawn from the seed.

    Args:
        config: The settings.
        position: Where the run is, with its pools.
        step: Number of the step.
        count: Number of tasks in the data set.
    """
    size = min(config.batch_size, count)
    if not config.has_pools:
        epoch, index = divmod(step, -(-count // config.batch_size))
        # The same shuffle that `Tasks.order` uses, so runs with and without pools start alike.
        order = shuffled(count, config.seed, epoch)
        first = index * config.batch_size
        return StepTasks(order[first : first + config.batch_size], 0, 0)
    rates = {"solved": config.solved_rate, "unsolved": config.unsolved_rate}
    chosen: dict[int, None] = {}
    waiting: dict[int, None] = {}
    cursor = position.cursor
    # At most one whole epoch beyond the step, so that rates of 0 cannot loop for ever.
    while len(chosen) < size and cursor - position.cursor < count + size:
        epoch, index = divmod(cursor, count)
        task = shuffled(count, config.seed, epoch)[index]
        rate = rates.get(position.pools.get(str(task), ""), 1.0)
        if task in chosen:
            pass  # its next turn comes in a later step
        elif rate < 1 and sub_random(config.seed, "pools", cursor).random() >= rate:
            waiting[task] = None
        else:
            chosen[task] = None
            waiting.pop(task, None)
        cursor += 1
    # Almost every task is in a pool: those that were passed over first fill the step.
    filling = list(waiting)[: size - len(chosen)]
    passed_over = len(waiting) - len(filling)
    return StepTasks([*chosen, *filling], cursor, passed_over)


def update_pools(
    config: VeRLConfig,
    position: Position,
    places: Sequence[int],
    totals: Sequence[float | None],
) -> None:
    """Move the tasks of groups into the pools, or out of them.

    Args:
        config: The settings.
        position: Where the run is; its pools are changed.
        places: The task of each group.
        totals: The rewards of the samples, a group after the other; None where one is missing.
    """
    if not config.has_pools:
        return
    size = config.group_size
    # The groups come in the order of `places`.
    for number, task in enumerate(places):
        known = [t for t in totals[number * size : (number + 1) * size] if t is not None]
        if len(known) < 2:
            continue  # one reward does not say how often the task is solved
        if len(set(known)) > 1:
            position.pools.pop(str(task), None)
        else:
            position.pools[str(task)] = "solved" if known[0] >= config.solved_reward else "unsolved"


def pool_metrics(
    config: VeRLConfig, position: Position, turn: StepTasks, count: int
) -> dict[str, float]:
    """Return the share of the tasks in each pool, and the turns that went to another task."""
    if not config.has_pools:
        return {}
    pools = list(position.pools.values())
    return {
        "pool/solved": pools.count("solved") / count,
        "pool/unsolved": pools.count("unsolved") / count,
        "pool/passed_over": float(turn.passed_over),
    }
