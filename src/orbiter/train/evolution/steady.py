"""Without a barrier: a child starts as soon as a place is free, and replaces the worst.

(mu + 1) with tournaments: parents are drawn from the population as it is at that moment, so that
results depend on who was ready first. An epoch is `population_size` finished evaluations.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from orbiter.train.errors import TrainingError
from orbiter.train.evolution.config import EvolutionPhase, StopReason
from orbiter.train.evolution.evaluator import Referee
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.selection import survivors
from orbiter.train.evolution.state import State
from orbiter.train.evolution.variation import Nursery

C = TypeVar("C")


async def run_steadily(state: State[C], initial: Sequence[Member[C]]) -> list[Member[C]]:
    """Run to the end of the budget or of the epochs; return the last population, best first."""
    state.epoch = 1
    state.enter(EvolutionPhase.EVALUATING)
    stream = _Stream(state, initial)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(state.config.concurrency):
                group.create_task(stream.work())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    return stream.population


class _Stream(Generic[C]):
    """The population that all workers draw from and put back to."""

    def __init__(self, state: State[C], initial: Sequence[Member[C]]) -> None:
        self.state = state
        self.population: list[Member[C]] = []
        self._ranks: list[tuple[float, int]] = []
        """What the population is sorted by; asking its members each time costs more."""
        self._referee, self._nursery = Referee(state), Nursery(state)
        self._waiting = list(reversed(initial))
        self._changed = asyncio.Event()
        self._own_select = state.strategy.selects()
        self._under_way = 0
        self._barren = 0
        self._closing = asyncio.Lock()  # of two workers that end an epoch, one waits
        self._epoch_finished = 0
        self._epoch_failed = 0

    async def work(self) -> None:
        """Take the next candidate, score it, put it into the population; until the end."""
        while self.state.stop is None:
            if not self._waiting and not self.population:
                if not self._under_way:
                    return
                await self._change()
                continue
            self._under_way += 1
            try:
                member = await self._next()
                if member is None:
                    await self._nothing_new()
                    continue
                await self._referee.score_one(member)
            finally:
                self._under_way -= 1
                self._changed.set()
            if member.scores or member.error is not None:
                await self._put(member)

    async def _next(self) -> Member[C] | None:
        if self._waiting:
            return self._waiting.pop()
        if self.state.config.mutation_rate == 0:
            return None
        return await self._nursery.one(self.population)

    async def _nothing_new(self) -> None:
        """Give up once an epoch's worth of places found no new child, and nobody is under way."""
        self._barren += 1
        hopeless = self.state.config.mutation_rate == 0
        if self._under_way > 1:
            await self._change()
        elif hopeless or self._barren >= self.state.config.population_size:
            self.state.stop = self.state.stop or StopReason.STAGNANT

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _put(self, member: Member[C]) -> None:
        state = self.state
        self._barren = 0
        if member.error is None:
            self._insert(member)
            state.crown([member])
        self._epoch_finished += 1
        self._epoch_failed += member.error is not None
        if self._epoch_finished >= state.config.population_size and state.stop is None:
            if self._epoch_failed == self._epoch_finished:
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
        rank = (-member.score, member.number)
        place = bisect.bisect(self._ranks, rank)
        self._ranks.insert(place, rank)
        self.population.insert(place, member)
        if not self._own_select:
            size = self.state.config.population_size
            del self.population[size:], self._ranks[size:]

    def _rank(self, population: Iterable[Member[C]]) -> None:
        self.population = ranked(population)
        self._ranks = [(-member.score, member.number) for member in self.population]

    async def _end_epoch(self) -> None:
        state = self.state
        if state.config.contenders:
            await self._referee.score_again(self.population)
            state.crown(self.population)
            self._rank(self.population)
        if self._own_select:
            seen = list(self.population)
            kept = await survivors(state, seen)
            late = [member for member in self.population if member not in seen]
            self._rank([*kept, *late])
        state.close_epoch(self.population)
        state.epoch += 1
