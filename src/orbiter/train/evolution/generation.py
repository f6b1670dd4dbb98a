"""Epoch by epoch: evaluate what is new, select, fill the free places; nobody goes ahead.

The same result at any concurrency, with the cache on or off, and after any interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from orbiter.train.errors import TrainingError
from orbiter.train.evolution.config import EvolutionPhase, StopReason
from orbiter.train.evolution.evaluator import Referee
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.selection import survivors
from orbiter.train.evolution.state import State
from orbiter.train.evolution.variation import Nursery

C = TypeVar("C")


async def run_generations(state: State[C], initial: Sequence[Member[C]]) -> list[Member[C]]:
    """Run to the end of the budget or of the epochs; return the last population, best first."""
    referee, nursery = Referee(state), Nursery(state)
    population: list[Member[C]] = []
    parents = list(initial)
    free = 0 if state.strategy.needs_scores else state.config.population_size - len(parents)
    state.epoch = 1
    while True:
        children = await _children(state, nursery, parents, free)
        renewed = children and state.strategy.renews and state.epoch > 1
        population = children if renewed else [*parents, *children]
        state.enter(EvolutionPhase.EVALUATING)
        scored = await _evaluate(state, referee, population)
        if state.stop is not None:
            state.crown(scored)
            return ranked(m for m in population if m.scores or m.error is not None)
        state.enter(EvolutionPhase.SELECTING)
        state.crown(scored)
        parents = await survivors(state, population)
        state.close_epoch(parents)
        free = state.config.population_size - (0 if state.strategy.renews else len(parents))
        if state.stop is None and free and not children and state.epoch > 1:
            state.stop = _nothing_new(state)
        if state.stop is not None:
            return parents
        state.epoch += 1


async def _children(
    state: State[C], nursery: Nursery[C], parents: Sequence[Member[C]], free: int
) -> list[Member[C]]:
    if free <= 0 or state.config.mutation_rate == 0:
        return []
    state.enter(EvolutionPhase.MUTATING)
    return await nursery.fill(free, parents)


async def _evaluate(
    state: State[C], referee: Referee[C], population: Sequence[Member[C]]
) -> list[Member[C]]:
    new = [member for member in population if not member.scores and member.error is None]
    scored = await referee.score_new(new)
    if scored and all(member.error is not None for member in scored) and len(scored) == len(new):
        raise TrainingError(
            f"all {len(new)} evaluations of epoch {state.epoch} failed; the first: "
            f"{scored[0].error}"
        )
    if state.config.contenders and state.stop is None:
        await referee.score_again(population)
    return [member for member in population if member.scores]


def _nothing_new(state: State[C]) -> StopReason | None:
    """Say that no further candidate can be made; without mutation that was never the plan."""
    return None if state.config.mutation_rate == 0 else StopReason.STAGNANT
