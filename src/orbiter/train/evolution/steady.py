"""The loop without epochs to wait for: each free worker makes and scores the next child.

(mu + 1) with tournaments: parents are drawn from the population as it is at that moment, so the
result depends on which evaluation ended first. A child replaces the worst member. An epoch is
`population_size` finished evaluations.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from orbiter.train.errors import TrainingError
from orbiter.train.evolution.config import StopReason
from orbiter.train.evolution.evaluator import Evaluator
from orbiter.train.evolution.event import EvolutionPhase
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.selection import survivors
from orbiter.train.evolution.state import State
from orbiter.train.evolution.variation import Variation

C = TypeVar("C")


async def run_steadily(state: State[C], initial: Sequence[Member[C]]) -> list[Member[C]]:
    """Run until the budget or the epochs are used up; return the last population, best first."""
    state.epoch = 1
    state.enter(EvolutionPhase.EVALUATING)
    stream = _SteadyPopulation(state, initial)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(state.config.concurrency):
                group.create_task(stream.work())
    # The first failure ended the others; its own class is what callers catch.
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    if state.stop is None:  # no candidate is left, and none was ever scored
        raise TrainingError(
            f"all {len(initial)} evaluations of the initial population failed; the last: "
            f"{state.members[-1].error}"
        )
    return stream.population


class _SteadyPopulation(Generic[C]):
    """The population that all workers take parents from and insert children into."""

    def __init__(self, state: State[C], initial: Sequence[Member[C]]) -> None:
        self.state = state
        self.population: list[Member[C]] = []
        self._ranks: list[tuple[float, int]] = []
        """Sort keys of the population; computing them from the members each time costs more."""
        self._evaluator, self._variation = Evaluator(state), Variation(state)
        # Reversed, because workers pop from the end.
        self._waiting = list(reversed(initial))
        self._changed = asyncio.Event()
        self._own_select = state.strategy.selects()
        self._running = 0
        self._fruitless = 0
        self._closing = asyncio.Lock()  # two workers may end an epoch at once
        self._epoch_finished = 0
        self._epoch_failed = 0

    async def work(self) -> None:
        """Take the next candidate, score it, insert it into the population; repeat."""
        while self.state.stop is None:
            # All initial candidates are being scored: wait for the first, unless all have failed.
            if not self._waiting and not self.population:
                if not self._running:
                    return
                # Set by a worker that has finished, which may have put a parent into the
                # population.
                await self._change()
                continue
            self._running += 1
            try:
                member = await self._next()
                # No new child now, but another worker may soon insert a parent that yields one.
                if member is None:
                    await self._nothing_new()
                    continue
                await self._evaluator.score_one(member)
            finally:
                self._running -= 1
                # Set after every candidate, so that waiting workers look again.
                self._changed.set()
            # Neither means that the budget did not allow the evaluation.
            if member.scores or member.error is not None:
                await self._put(member)

    async def _next(self) -> Member[C] | None:
        if self._waiting:
            return self._waiting.pop()
        if self.state.config.mutation_rate == 0:
            return None
        return await self._variation.one(self.population)

    async def _nothing_new(self) -> None:
        """End the run once a whole population of slots got no new child and no other is running."""
        self._fruitless += 1
        hopeless = self.state.config.mutation_rate == 0
        # This worker still counts as running, hence 1.
        if self._running > 1:
            await self._change()
        elif hopeless or self._fruitless >= self.state.config.population_size:
            self.state.end(StopReason.STAGNANT)

    async def _change(self) -> None:
        # No other task runs between these two lines, since neither gives up control before the
        # wait.
        self._changed.clear()
        await self._changed.wait()

    async def _put(self, member: Member[C]) -> None:
        state = self.state
        self._fruitless = 0
        if member.error is None:
            self._insert(member)
            state.update_best([member])
        # An epoch here is a number of evaluations, since nothing else ends together.
        size = state.config.population_size
        state.count_outcome(member.error, at_once=size)
        self._epoch_finished += 1
        self._epoch_failed += member.error is not None
        if self._epoch_finished >= size and state.stop is None:
            if self._epoch_failed == self._epoch_finished and state.best is None:
                raise TrainingError(
                    f"all {self._epoch_finished} evaluations of epoch {state.epoch} failed; the "
                    f"last: {member.error}"
                )
            self._epoch_finished = self._epoch_failed = 0
            async with self._closing:
                await self._end_epoch()
        elif state.has_reached_target() and not state.config.contenders and state.stop is None:
            await self._end_epoch()

    def _insert(self, member: Member[C]) -> None:
        # Negative scores sort the best first; the number keeps equal ones in the order of birth.
        rank = (-member.score, member.number)
        index = bisect.bisect(self._ranks, rank)
        self._ranks.insert(index, rank)
        self.population.insert(index, member)
        if not self._own_select:
            size = self.state.config.population_size
            # The worst member leaves; with an own `select` the strategy decides at the end of the
            # epoch.
            del self.population[size:], self._ranks[size:]

    def _rank(self, population: Iterable[Member[C]]) -> None:
        self.population = ranked(population)
        self._ranks = [(-member.score, member.number) for member in self.population]

    async def _end_epoch(self) -> None:
        state = self.state
        if state.config.contenders:
            await self._evaluator.score_again(self.population)
            state.update_best(self.population)
            self._rank(self.population)
        if self._own_select:
            # A copy: workers go on inserting while `select` runs.
            seen = list(self.population)
            kept = await survivors(state, seen)
            # Members that were inserted while `select` ran.
            late = [member for member in self.population if member not in seen]
            self._rank([*kept, *late])
        state.close_epoch(self.population)
        state.epoch += 1
