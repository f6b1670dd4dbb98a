"""Scoring members: at most so many at once, in time, once each, whatever happens inside.

A failure is data here: an evaluation that raises, hangs or answers NaN leaves a member with its
cause and without a score, and the run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from orbiter.train.callback import map_bounded, prepare
from orbiter.train.errors import CallbackError, DataError, TrainError, boundary
from orbiter.train.evolution.config import EvolutionPhase
from orbiter.train.evolution.journal import Trial
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.state import State
from orbiter.train.evolution.strategy import CURRENT, Context, Score, as_score

C = TypeVar("C")

BACKOFF_SECONDS = 0.1
"""Before the first retry; doubled for each further one."""


class Referee(Generic[C]):
    """Evaluates the members of a run."""

    def __init__(self, state: State[C]) -> None:
        self.state = state
        self._under_way: dict[str, asyncio.Future[None]] = {}
        self._ended = asyncio.Event()
        self._ask: Callable[[C], Awaitable[float | Score]] = prepare(state.strategy.evaluate)

    async def score_new(self, members: Sequence[Member[C]]) -> list[Member[C]]:
        """Score members that have no score; return those that were, in order of birth.

        With `cache`, equal members share one evaluation, also while it is under way. Where the
        budget ends, `state.stop` says so and the members behind are left out.
        """
        await map_bounded(members, self.score_one, concurrency=self.state.config.concurrency)
        return [m for m in members if m.error is not None or m.scores]

    async def score_one(self, member: Member[C]) -> None:
        """Score one member, all its replicates, or take the score of its equal."""
        state = self.state
        first = state.known[member.key]
        if first is not member and state.config.cache:
            await self._wait_for(first)
            member.scores, member.error = first.scores, first.error
            state.cache_hits += bool(first.scores)
            return
        done = asyncio.get_running_loop().create_future()
        self._under_way[member.name] = done
        try:
            while member.tried < state.config.replicates and member.error is None:
                if not await self._evaluate(member):
                    break
        finally:
            done.set_result(None)
            del self._under_way[member.name]

    async def score_again(self, population: Sequence[Member[C]]) -> None:
        """Evaluate the leading members once more, and pool: the lucky ones come down."""
        leading = [m for m in ranked(population) if m.error is None and m.scores]

        async def again(member: Member[C]) -> None:
            await self._evaluate(member)

        config = self.state.config
        await map_bounded(leading[: config.contenders], again, concurrency=config.concurrency)

    async def confirm(self, winner: Member[C]) -> list[Score]:
        """Evaluate the winner afresh, as often as `confirm` says; return these scores alone."""

        async def once(number: int) -> Score | None:
            if state.budget.refuses_to_confirm():
                return None
            trial = await self._run(winner, f"{winner.name}, confirmed", number)
            if trial.error is not None:
                self._count_failure(trial.error)
            return trial.score

        state = self.state
        state.enter(EvolutionPhase.EVALUATING)
        numbers = range(state.config.confirm)
        scores = await map_bounded(numbers, once, concurrency=state.config.concurrency)
        return [score for score in scores if score is not None]

    async def _wait_for(self, first: Member[C]) -> None:
        pending = self._under_way.get(first.name)
        if pending is not None:
            await asyncio.shield(pending)

    async def _evaluate(self, member: Member[C]) -> bool:
        """Run one evaluation; return False where the budget no longer allows it."""
        state = self.state
        while state.budget.must_wait:
            self._ended.clear()
            await self._ended.wait()
        state.stop = state.stop or state.budget.refuses()
        if state.stop is not None:
            return False
        member.tried += 1
        self._take(member, await self._run(member, member.name, member.tried - 1))
        return True

    async def _run(self, member: Member[C], name: str, replicate: int) -> Trial:
        """Return how an evaluation ended, from the journal where it stands there."""
        state = self.state
        state.budget.begin()
        trial = state.journal.trials.get((name, replicate))
        cost = trial.cost if trial else 0.0
        try:
            if trial is None:
                trial = await self._try(member, name, replicate)
                cost = trial.cost
                state.journal.write_trial(trial)
        finally:
            state.budget.end(cost)
            self._ended.set()
        return trial

    def _take(self, member: Member[C], trial: Trial) -> None:
        if trial.score is not None:
            member.scores.append(trial.score)
            self.state.tell("evaluated", score=trial.score.value)
            return
        if not member.scores:
            member.error = trial.error
        self._count_failure(trial.error or "")
        if self.state.config.on_error == "raise":
            raise CallbackError(f"candidate {member.number}: {trial.error}")

    def _count_failure(self, error: str) -> None:
        self.state.failures += 1
        self.state.tell("failed", message=error)

    async def _try(self, member: Member[C], name: str, replicate: int) -> Trial:
        state, cost = self.state, 0.0
        parent = state.members[member.parents[0]] if member.parents else None
        for attempt in range(state.config.retries + 1):
            context = state.context(
                "evaluate", name, replicate, child=member.name, replicate=replicate, parent=parent
            )
            score, error, again = await self._call(member.candidate, context)
            cost += context.cost + (score.cost if score else 0.0)
            if not again or attempt == state.config.retries:
                break
            await asyncio.sleep(BACKOFF_SECONDS * 2**attempt)
        if score is not None and cost != score.cost:
            score = replace(score, cost=cost)
        return Trial(name, replicate, score, error, cost)

    async def _call(self, candidate: C, context: Context) -> tuple[Score | None, str | None, bool]:
        """Return the score, or the cause and whether another try makes sense."""
        token = CURRENT.set(context)
        try:
            with boundary("evaluate"):
                answer = await self._in_time(candidate)
            return as_score(answer), None, False
        except DataError as error:
            return None, str(error), False
        except TrainError as error:
            return None, str(error), True
        finally:
            CURRENT.reset(token)

    async def _in_time(self, candidate: C) -> float | Score:
        limit = self.state.config.timeout
        if limit is None:
            return await self._ask(candidate)
        try:
            async with asyncio.timeout(limit) as timeout:
                return await self._ask(candidate)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise CallbackError(f"evaluate did not end within {limit:g} s") from None
