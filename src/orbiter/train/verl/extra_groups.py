"""Replace groups that teach nothing by further ones.

Yu et al. 2025 (DAPO), section 3.2, "dynamic sampling", https://arxiv.org/abs/2503.14476: a group
whose samples all got the same reward has no gradient. DAPO samples until the batch is full; here
`max_extra_groups` limits what a step samples beyond its own groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from orbiter.train.engine.session import Position
from orbiter.train.seeding import sub_random
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import Scores

T = TypeVar("T")


def flat_groups(totals: Sequence[float | None], size: int) -> list[int]:
    """Return the groups without two different rewards, by number.

    Args:
        totals: The rewards, a group after the other; None where a sample has none.
        size: Samples of a group.
    """
    groups = [totals[at : at + size] for at in range(0, len(totals), size)]
    # Fewer than two rewards leave nothing to compare.
    return [i for i, group in enumerate(groups) if len({t for t in group if t is not None}) < 2]


def further_tasks(
    config: VeRLConfig,
    position: Position,
    step: int,
    first: Sequence[int],
    *,
    of: int,
    done: int,
    count: int,
) -> list[int]:
    """Return the next tasks that a step takes beyond its own; those in no pool come first.

    Args:
        config: The settings.
        position: Where the run is, with its pools.
        step: Number of the step.
        first: The step's own tasks.
        of: Number of tasks in the data set.
        done: Groups that the step has taken beyond its own already.
        count: Tasks to return.
    """
    # A data set smaller than a step has no others, so its tasks are asked again.
    others = sorted(set(range(of)) - set(first)) or sorted(set(first))
    sub_random(config.seed, "extra groups", step).shuffle(others)
    others.sort(key=lambda task: str(task) in position.pools)
    return [others[at % len(others)] for at in range(done, done + count)]


def swapped(
    values: Sequence[T], group: int, others: Sequence[T], other: int, *, size: int
) -> list[T]:
    """Return values with those of one group replaced by those of a group of `others`."""
    mine, theirs = slice(group * size, (group + 1) * size), slice(other * size, (other + 1) * size)
    return [*values[: mine.start], *others[theirs], *values[mine.stop :]]


def swapped_scores(scores: Scores, group: int, others: Scores, other: int, *, size: int) -> Scores:
    """Return scores with those of one group replaced by those of a group of `others`."""
    empty, missing = [None] * len(scores.total), [None] * len(others.total)
    return Scores(
        swapped(scores.total, group, others.total, other, size=size),
        {
            name: swapped(
                scores.by_name.get(name, empty),
                group,
                others.by_name.get(name, missing),
                other,
                size=size,
            )
            for name in dict.fromkeys([*scores.by_name, *others.by_name])
        },
        scores.faults + others.faults,
        scores.left_out,
        scores.order_effect,
    )
