"""Making children: parents chosen by keyed draws, known children varied once more.

A child that equals anything ever born is not evaluated again; it is varied further, and after
`ATTEMPTS` tries its place stays free.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from orbiter.train.callback import call_here, map_bounded, prepare
from orbiter.train.errors import CallbackError, TrainError, boundary
from orbiter.train.evolution.journal import Birth
from orbiter.train.evolution.member import Member, Origin
from orbiter.train.evolution.state import State
from orbiter.train.evolution.strategy import CURRENT, EvolutionStrategy
from orbiter.train.seeding import sub_random

C = TypeVar("C")

ATTEMPTS = 8
"""How many times a child that is known already is varied once more."""


@runtime_checkable
class Crossing(Protocol):
    """A strategy that can also make a child of two."""

    def crossover(self, first: object, second: object) -> object:
        """Return a child of both parents, not mutated yet; quick, for it holds up the loop.

        None: these two cannot be crossed, and the first is mutated instead.
        """


@dataclass(slots=True)
class Place(Generic[C]):
    """A free place, its parents and the child that is being made for it."""

    slot: int
    parents: tuple[Member[C], ...]
    origin: Origin = "mutate"
    child: C | None = None
    key: str = ""
    error: str | None = None

    @property
    def name(self) -> str:
        """Name of the member that will stand here."""
        return f"child {self.slot}"


class Nursery(Generic[C]):
    """Fills free places with children that nobody has seen."""

    def __init__(self, state: State[C]) -> None:
        self.state = state
        self.slots = 0
        """Places handed out over the run."""
        self._mutate: Callable[[C], Awaitable[C]] = prepare(state.strategy.mutate)
        self._crosses = isinstance(state.strategy, Crossing)
        kind = type(state.strategy)
        self._chooses = kind.choose_parent is not EvolutionStrategy.choose_parent
        self._failed_running = 0

    async def fill(self, count: int, parents: Sequence[Member[C]]) -> list[Member[C]]:
        """Make `count` children of `parents`, each parent in its turn; fewer where none are new.

        All places are varied at once, then compared in the order of their slots, then those whose
        child is known are varied once more: the result does not depend on who was ready first.
        """
        choose = self._chooser(parents)
        places = [self._place(choose(parents[i % len(parents)]), parents) for i in range(count)]
        open_places, born = places, {}
        for attempt in range(ATTEMPTS + 1):
            await self._vary_all(open_places, attempt)
            still_open = []
            for place in open_places:
                if place.error is None and place.key in self.state.known:
                    still_open.append(place)
                elif place.error is None:
                    born[place.slot] = self._admit(place)
            open_places = still_open
            if not open_places:
                break
        broken = [place.error for place in places if place.error is not None]
        for error in broken:
            self._count_failure(error)
        if broken and len(broken) == len(places):
            raise CallbackError(f"all {len(places)} mutations of an epoch failed; {broken[0]}")
        return [born[place.slot] for place in places if place.slot in born]

    async def one(self, population: Sequence[Member[C]]) -> Member[C] | None:
        """Make one child of a parent that won a tournament; None where it cannot be new.

        A mutation that fails is data; as many in a row as the population has members end the run.
        """
        config = self.state.config
        size = max(1, round(1 / config.selection_ratio))
        while self.state.stop is None:
            random_ = sub_random(config.seed, "parents", self.slots)
            first = self._chooser(population)(_tournament(population, size, random_))
            place = self._place(first, population, random_, tournament=size)
            for attempt in range(ATTEMPTS + 1):
                await self._vary(place, attempt)
                if place.error is not None:
                    break
                self._failed_running = 0
                if place.key not in self.state.known:
                    return self._admit(place)
            if place.error is None:
                return None
            self._count_failure(place.error)
            self._failed_running += 1
            if self._failed_running >= config.population_size:
                raise CallbackError(
                    f"{self._failed_running} mutations failed running; {place.error}"
                )
        return None

    def _chooser(self, population: Sequence[Member[C]]) -> Callable[[Member[C]], Member[C]]:
        """Return the strategy's choice of a parent, or what keeps to the loop's."""
        state = self.state
        if not self._chooses:
            return lambda member: member
        candidates = [member.candidate for member in population]
        scores = [member.pooled() for member in population]

        def choose(member: Member[C]) -> Member[C]:
            token = CURRENT.set(
                state.context("choose", self.slots, child=f"child {self.slots}", scores=scores)
            )
            try:
                with boundary("choose_parent"):
                    index = state.strategy.choose_parent(candidates, scores)
                    return member if index is None else population[index]
            finally:
                CURRENT.reset(token)

        return choose

    def _place(
        self,
        first: Member[C],
        population: Sequence[Member[C]],
        random_: random.Random | None = None,
        *,
        tournament: int = 1,
    ) -> Place[C]:
        slot, config = self.slots, self.state.config
        self.slots += 1
        if self._crosses and len(population) > 1 and config.crossover_rate > 0:
            random_ = random_ or sub_random(config.seed, "crossover", slot)
            if random_.random() < config.crossover_rate:
                second = _tournament(population, tournament, random_)
                return Place(slot, (first, second), "crossover")
        return Place(slot, (first,))

    async def _vary_all(self, places: Sequence[Place[C]], attempt: int) -> None:
        async def vary(place: Place[C]) -> None:
            await self._vary(place, attempt)

        await map_bounded(places, vary, concurrency=self.state.config.concurrency)

    async def _vary(self, place: Place[C], attempt: int) -> None:
        """Cross and mutate for a place, or take what the journal says was made."""
        state = self.state
        recorded = state.journal.births.get((place.slot, attempt))
        if recorded is not None:
            child = state.codec.read(recorded.candidate)
            state.budget.spend(recorded.cost)
            place.parents = self._named(recorded.parents) or place.parents
            place.child = child  # type: ignore[assignment] # the codec gives back what it was given
            place.key, _ = state.identify(place.child)  # type: ignore[arg-type]
            return
        context = state.context(
            "mutate", place.slot, attempt, child=place.name, parent=place.parents[0]
        )
        token = CURRENT.set(context)
        try:
            place.child = await self._make(place, attempt)
        except TrainError as error:
            place.error = str(error)
            return
        finally:
            CURRENT.reset(token)
            state.budget.spend(context.cost)
        place.key, written = state.identify(place.child)
        if written is not None:
            parents = tuple(parent.name for parent in place.parents)
            state.journal.write_birth(Birth(place.slot, attempt, written, context.cost, parents))

    async def _make(self, place: Place[C], attempt: int) -> C:
        strategy = self.state.strategy
        source: C = place.parents[0].candidate
        if attempt and place.child is not None:
            source = place.child
        elif place.origin == "crossover":
            crossover: Callable[[C, C], Awaitable[C | None] | C | None] = strategy.crossover  # type: ignore[attr-defined] # it is Crossing
            with boundary("crossover"):
                crossed = await call_here(crossover, source, place.parents[1].candidate)
            if crossed is None:
                place.parents, place.origin = place.parents[:1], "mutate"
            elif not strategy.mutates_crossed:
                return crossed
            else:
                source, CURRENT.get().crossed = crossed, True
        with boundary("mutate"):
            return await self._mutate(source)

    def _admit(self, place: Place[C]) -> Member[C]:
        assert place.child is not None
        parents = tuple(parent.number for parent in place.parents)
        return self.state.admit(
            place.child,
            place.key,
            origin=place.origin,
            name=place.name,
            parents=parents,
        )

    def _named(self, names: tuple[str, ...]) -> tuple[Member[C], ...]:
        by_name = self.state.by_name
        return tuple(by_name[name] for name in names if name in by_name)

    def _count_failure(self, error: str) -> None:
        self.state.failures += 1
        self.state.tell("failed", message=error)
        if self.state.config.on_error == "raise":
            raise CallbackError(f"a mutation failed; {error}")


def _tournament(population: Sequence[Member[C]], size: int, random_: random.Random) -> Member[C]:
    """Return the best of `size` members drawn with replacement; the population is best first.

    One draw: with U even in (0, 1], the least of k draws from 0 to n - 1 is distributed as
    floor(n (1 - U^(1/k))), since it is j or more with probability (1 - j/n)^k.
    """
    least = int(len(population) * (1.0 - (1.0 - random_.random()) ** (1.0 / size)))
    return population[min(least, len(population) - 1)]
