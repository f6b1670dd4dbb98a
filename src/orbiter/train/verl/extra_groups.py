"""Replace groups that teach nothing by further ones.

Yu et al. 2025 (DAPO), section 3.2, "dynamic sampling", https://arxiv.org/abs/2503.14476: a group
whose samples all got the same reward has no gradient. DAPO samples until the batch is full; here
`max_extra_groups` limits what a step samples beyond its own groups.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from orbiter.train.engine.session import Position
from orbiter.train.seeding import sub_random
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import SampleScores

T = TypeVar("T")


class Groups(Protocol):
    """The scored groups of a step, one for each of its tasks."""

    def flat(self, config: VeRLConfig) -> list[int]:
        """Return the groups whose rewards, as they are learned from, do not differ."""

    def replaced(self: G, group: int, by: G, other: int, *, size: int) -> G:
        """Return these groups with one of them replaced by a group of `by`."""


G = TypeVar("G", bound=Groups)


async def without_flat(
    config: VeRLConfig,
    position: Position,
    step: int,
    drawn: G,
    ask: Callable[[list[int], int], Awaitable[G]],
    *,
    first: Sequence[int],
    of: int,
) -> tuple[G, dict[str, float]]:
    """Replace groups without a learning signal by further ones, up to `max_extra_groups`.

    The further tasks are those that the step does not have, as far as there are any. The metrics
    of the step stay those of its own tasks: groups that were chosen because their rewards differ
    would say nothing about the policy.

    Args:
        config: The settings.
        position: Where the run is, with its pools.
        step: Number of the step.
        drawn: The step's own groups.
        ask: Returns a group for each of these tasks; its second argument is the number of groups
            that the step has taken beyond its own before.
        first: The step's own tasks.
        of: Number of tasks in the data set.

    Returns:
        The groups to learn from, and the metrics of the replacement.
    """
    chosen, extra = drawn, 0
    while extra < config.max_extra_groups:
        flat = chosen.flat(config)
        count = min(len(flat), config.max_extra_groups - extra)
        if count == 0:
            break
        tasks = further_tasks(config, position, step, first, of=of, done=extra, count=count)
        more = await ask(tasks, extra)
        extra += count
        # A further group may be flat too, so fewer groups may be replaced than were asked for.
        useful = sorted(set(range(count)) - set(more.flat(config)))
        for group, other in zip(flat, useful, strict=False):
            chosen = chosen.replaced(group, more, other, size=config.group_size)
    return chosen, {"extra_groups": float(extra)} if config.max_extra_groups else {}


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


def swapped_scores(
    scores: SampleScores, group: int, others: SampleScores, other: int, *, size: int
) -> SampleScores:
    """Return scores with those of one group replaced by those of a group of `others`."""
    empty, missing = [None] * len(scores.total), [None] * len(others.total)
    return SampleScores(
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
