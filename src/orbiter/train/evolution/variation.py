"""Makes children: chooses parents by seeded draws, crosses and mutates, and rejects known children.

A child that equals any earlier candidate is not evaluated again; it is varied further, and after
`ATTEMPTS` more tries its slot stays empty. A mutation that fails is tried again, then skipped.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from orbiter.train.callback import call_here, map_bounded, prepare
from orbiter.train.errors import CallbackError, TrainError, boundary
from orbiter.train.evolution.config import StopReason
from orbiter.train.evolution.journal import Birth
from orbiter.train.evolution.member import Member, Origin
from orbiter.train.evolution.state import State
from orbiter.train.evolution.strategy import CURRENT, EvolutionStrategy
from orbiter.train.llm.failure import BudgetError, ChatError
from orbiter.train.seeding import sub_random

C = TypeVar("C")

ATTEMPTS = 8
"""How many times a child that equals an earlier candidate is varied again."""

TRIES = 2
"""Calls of `mutate` before a mutation has failed; `retries` adds further ones."""


@runtime_checkable
class Crossing(Protocol):
    """A strategy that can also make a child of two parents."""

    def crossover(self, first: object, second: object) -> object:
        """Return a child of both parents, not mutated yet; quick, for it blocks the event loop.

        None: these two cannot be crossed, and the first is mutated instead.
        """


@dataclass(slots=True)
class Slot(Generic[C]):
    """A place in the population to be filled, its parents and the child made for it."""

    number: int
    """Counted over the run."""
    parents: tuple[Member[C], ...]
    origin: Origin = "mutate"
    child: C | None = None
    key: str = ""
    error: TrainError | None = None

    @property
    def name(self) -> str:
        """Name of the member that will fill the slot."""
        return f"child {self.number}"


class Variation(Generic[C]):
    """Fills slots with children that were never seen before."""

    def __init__(self, state: State[C]) -> None:
        self.state = state
        self.slots = 0
        """The number of slots assigned over the run."""
        self._mutate: Callable[[C], Awaitable[C]] = prepare(state.strategy.mutate)
        self._crosses = isinstance(state.strategy, Crossing)
        kind = type(state.strategy)
        self._chooses = kind.choose_parent is not EvolutionStrategy.choose_parent
        self._failed_in_a_row = 0
        self._has_succeeded = False

    async def fill(self, count: int, parents: Sequence[Member[C]]) -> list[Member[C]]:
        """Make `count` children, each parent in turn; fewer if no new ones can be made.

        All slots are varied at once, then compared in their order, then those whose child is not
        new are varied again, so the result does not depend on which call ended first.
        """
        choose = self._chooser(parents)
        # The parents are chosen before any call, so that they do not depend on timing.
        slots = [self._slot(choose(parents[i % len(parents)]), parents) for i in range(count)]
        open_slots, born = slots, {}
        for attempt in range(ATTEMPTS + 1):
            await self._vary_all(open_slots, attempt)
            # An unfinished generation is dropped; a resumed run makes the same one.
            if self.state.has_ended():
                return []
            still_open = []
            # In slot order: of two equal children the first slot's is kept at any concurrency.
            for slot in open_slots:
                if slot.error is None and slot.key in self.state.known:
                    still_open.append(slot)
                elif slot.error is None:
                    born[slot.number] = self._add_member(slot)
            open_slots = still_open
            if not open_slots:
                break
        for slot in slots:
            self._count_outcome(slot, at_once=count)
        return [born[slot.number] for slot in slots if slot.number in born]

    async def one(self, population: Sequence[Member[C]]) -> Member[C] | None:
        """Make one child of a parent that won a tournament; None if no new child can be made."""
        config = self.state.config
        # A tournament of 1 / ratio members selects about as strongly as keeping that ratio.
        size = max(1, round(min(1 / config.selection_ratio, 1e9)))
        while not self.state.has_ended():
            # The slot's number seeds the draw, so a resumed run draws the same parents.
            random_ = sub_random(config.seed, "parents", self.slots)
            first = self._chooser(population)(_tournament(population, size, random_))
            slot = self._slot(first, population, random_, tournament=size)
            for attempt in range(ATTEMPTS + 1):
                await self._vary(slot, attempt)
                if slot.error is not None or self.state.has_ended():
                    break
                if slot.key not in self.state.known:
                    self._count_outcome(slot, at_once=config.population_size)
                    return self._add_member(slot)
            if slot.error is None:
                return None
            self._count_outcome(slot, at_once=config.population_size)
        return None

    @property
    def is_failing(self) -> bool:
        """Whether the last mutation failed."""
        return self._failed_in_a_row > 0

    def _chooser(self, population: Sequence[Member[C]]) -> Callable[[Member[C]], Member[C]]:
        """Return the strategy's choice of a parent, or a function that keeps the pipeline's."""
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

    def _slot(
        self,
        first: Member[C],
        population: Sequence[Member[C]],
        random_: random.Random | None = None,
        *,
        tournament: int = 1,
    ) -> Slot[C]:
        number, config = self.slots, self.state.config
        self.slots += 1
        if self._crosses and len(population) > 1 and config.crossover_rate > 0:
            random_ = random_ or sub_random(config.seed, "crossover", number)
            if random_.random() < config.crossover_rate:
                second = _tournament(population, tournament, random_)
                return Slot(number, (first, second), "crossover")
        return Slot(number, (first,))

    async def _vary_all(self, slots: Sequence[Slot[C]], attempt: int) -> None:
        async def vary(slot: Slot[C]) -> None:
            await self._vary(slot, attempt)

        await map_bounded(slots, vary, concurrency=self.state.config.concurrency)

    async def _vary(self, slot: Slot[C], attempt: int) -> None:
        """Make a child for a slot, or take the one in the journal; try again after a failure."""
        state = self.state
        # Parents come from the journal too: with `steady` they depend on the order of evaluations.
        recorded = state.journal.births.get((slot.number, attempt))
        if recorded is not None:
            # The recorded child is read as JSON, exactly as it was first made.
            child = state.codec.read(recorded.candidate)
            # Already paid, but part of the run's cost.
            state.budget.spend(recorded.cost)
            slot.parents = self._named(recorded.parents) or slot.parents
            slot.child = child  # type: ignore[assignment] # the codec gives back what it was given
            # Identified again, since the strategy's key may be computed from the content.
            slot.key, _ = state.identify(slot.child)  # type: ignore[arg-type]
            return
        for again in range(TRIES + state.config.retries):
            if state.has_ended() or await self._try(slot, attempt, again):
                return

    async def _try(self, slot: Slot[C], attempt: int, again: int) -> bool:
        """Make a child and record it; return False if that failed and may be tried again."""
        state = self.state
        # The key seeds `context.rng`: equal in a resumed run, different for each further try.
        key = ("mutate", slot.number, attempt, *(("again", again) if again else ()))
        context = state.context(*key, child=slot.name, parent=slot.parents[0])
        token = CURRENT.set(context)
        try:
            child = await self._make(slot, attempt)
            if child is None:
                raise CallbackError("mutate returned None; it must return a new candidate")
            slot.key, written = state.identify(child)
        except BudgetError as error:
            state.end(StopReason.BUDGET, str(error))
            return True
        except TrainError as error:
            slot.error = error
            return False
        finally:
            CURRENT.reset(token)
            state.budget.spend(context.cost)
        slot.child, slot.error = child, None
        # Without JSON the child cannot be recorded, and a resumed run makes it anew.
        if written is not None:
            parents = tuple(parent.name for parent in slot.parents)
            state.journal.write_birth(Birth(slot.number, attempt, written, context.cost, parents))
        return True

    async def _make(self, slot: Slot[C], attempt: int) -> C | None:
        strategy = self.state.strategy
        source: C = slot.parents[0].candidate
        # A child that is not new is varied further, not made again from its parent.
        if attempt and slot.child is not None:
            source = slot.child
        elif slot.origin == "crossover":
            crossover: Callable[[C, C], Awaitable[C | None] | C | None] = strategy.crossover  # type: ignore[attr-defined] # it is Crossing
            with boundary("crossover"):
                # In the event loop's thread: a crossover is quick, and a thread would cost more.
                crossed = await call_here(crossover, source, slot.parents[1].candidate)
            if crossed is None:
                slot.parents, slot.origin = slot.parents[:1], "mutate"
            elif not strategy.mutates_crossed:
                return crossed
            else:
                source, CURRENT.get().crossed = crossed, True
        with boundary("mutate"):
            return await self._mutate(source)

    def _add_member(self, slot: Slot[C]) -> Member[C]:
        parents = tuple(parent.number for parent in slot.parents)
        child: C = slot.child  # type: ignore[assignment] # a slot without an error has a child
        return self.state.add_member(
            child, slot.key, origin=slot.origin, name=slot.name, parents=parents
        )

    def _named(self, names: tuple[str, ...]) -> tuple[Member[C], ...]:
        by_name = self.state.by_name
        return tuple(by_name[name] for name in names if name in by_name)

    def _count_outcome(self, slot: Slot[C], *, at_once: int) -> None:
        """Count a success or a failure; end the run after too many failures in a row.

        Raises:
            CallbackError: no mutation ever succeeded, or one failed with on_error="raise".
        """
        state, error = self.state, slot.error
        if error is None:
            self._failed_in_a_row, self._has_succeeded = 0, True
            return
        state.failures += 1
        state.emit("failed", message=str(error))
        if state.config.on_error == "raise":
            raise CallbackError(f"a mutation failed; {error}") from error
        self._failed_in_a_row += 1
        if self._failed_in_a_row < max(3, at_once):
            return
        cause = f"{self._failed_in_a_row} mutations failed in a row; the last: {error}"
        # Never a success and no language model involved: most likely a bug in the user's code.
        if not self._has_succeeded and not isinstance(error, ChatError):
            raise CallbackError(cause) from error  # a mistake in `mutate`, not a temporary failure
        if state.best is not None:
            state.end(StopReason.FAILURES, cause)


def _tournament(population: Sequence[Member[C]], size: int, random_: random.Random) -> Member[C]:
    """Return the best of `size` members drawn with replacement; the population is best first.

    One draw: with U uniform in (0, 1], the least of k draws from 0 to n - 1 is distributed as
    floor(n (1 - U^(1/k))), since it is j or more with probability (1 - j/n)^k.
    """
    # 1 - random() lies in (0, 1], as the formula needs.
    least = int(len(population) * (1.0 - (1.0 - random_.random()) ** (1.0 / size)))
    return population[min(least, len(population) - 1)]
