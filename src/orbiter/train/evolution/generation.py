"""The loop with epochs: evaluate new members, select, fill the population with children.

The result is the same at any concurrency, with the cache on or off, and after any interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from orbiter.train.errors import TrainingError
from orbiter.train.evolution.config import StopReason
from orbiter.train.evolution.evaluator import Evaluator
from orbiter.train.evolution.event import EvolutionPhase
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.selection import survivors
from orbiter.train.evolution.state import State
from orbiter.train.evolution.variation import Variation

C = TypeVar("C")


async def run_generations(state: State[C], initial: Sequence[Member[C]]) -> list[Member[C]]:
    """Run until the budget or the epochs are used up; return the last population, best first."""
    evaluator, variation = Evaluator(state), Variation(state)
    parents = list(initial)
    # A strategy that varies by score cannot fill the population before some member has a score.
    free = 0 if state.strategy.needs_scores else state.config.population_size - len(parents)
    state.epoch = 1
    while True:
        children = await _children(state, variation, parents, free)
        # (mu, lambda): children replace their parents. Without children the parents stay.
        renewed = children and state.strategy.renews and state.epoch > 1
        population = children if renewed else [*parents, *children]
        if not state.has_ended():
            state.enter(EvolutionPhase.EVALUATING)
            state.update_best(await _evaluate(state, evaluator, population))
        if state.has_ended():
            return ranked(m for m in population if m.scores or m.error is not None)
        state.enter(EvolutionPhase.SELECTING)
        parents = await survivors(state, population)
        state.close_epoch(parents)
        free = state.config.population_size - (0 if state.strategy.renews else len(parents))
        # Failed mutations may succeed in the next epoch; if every child was known, nothing changes.
        stuck = free and not children and not variation.is_failing and state.epoch > 1
        if stuck and state.config.mutation_rate > 0:
            state.end(StopReason.STAGNANT)
        if state.has_ended():
            return parents
        state.epoch += 1


async def _children(
    state: State[C], variation: Variation[C], parents: Sequence[Member[C]], free: int
) -> list[Member[C]]:
    if free <= 0 or state.config.mutation_rate == 0:
        return []
    state.enter(EvolutionPhase.MUTATING)
    return await variation.fill(free, parents)


async def _evaluate(
    state: State[C], evaluator: Evaluator[C], population: Sequence[Member[C]]
) -> list[Member[C]]:
    """Score the new members of a population; return its members that have a score."""
    new = [member for member in population if not member.scores and member.error is None]
    scored = await evaluator.score_new(new)
    all_failed = len(scored) == len(new) > 0 and all(m.error is not None for m in scored)
    if all_failed and state.best is None:
        raise TrainingError(
            f"all {len(new)} evaluations of epoch {state.epoch} failed; the first: "
            f"{scored[0].error}"
        )
    for member in scored:
        state.count_outcome(member.error, at_once=len(new))
    if state.config.contenders and not state.has_ended():
        await evaluator.score_again(population)
    return [member for member in population if member.scores]
