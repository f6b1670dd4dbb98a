"""Scoring members: at most so many at once, in time, once each, whatever happens inside.

A failure is data here: an evaluation that raises, hangs or answers NaN leaves a member with its
cause and without a score, and the run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from orbiter.train.callback import map_bounded, prepare
from orbiter.train.errors import CallbackError, DataError, TrainError, boundary
from orbiter.train.evolution.journal import Trial
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.state import State
from orbiter.train.evolution.strategy import CURRENT, Score, as_score

C = TypeVar("C")

BACKOFF_SECONDS = 0.1
"""Before the first retry; doubled for each further one."""


class Referee(Generic[C]):
    """Evaluates the members of a run."""

    def __init__(self, state: State[C]) -> None:
        self.state = state
        self._under_way: dict[str, asyncio.Future[None]] = {}
        self._first_cost = asyncio.Event()
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
            for replicate in range(len(member.scores), state.config.replicates):
                if member.error is not None or not await self._evaluate(member, replicate):
                    break
        finally:
            done.set_result(None)
            del self._under_way[member.name]

    async def score_again(self, population: Sequence[Member[C]]) -> None:
        """Evaluate the leading members once more, and pool: the lucky ones come down."""
        leading = [m for m in ranked(population) if m.error is None and m.scores]

        async def again(member: Member[C]) -> None:
            await self._evaluate(member, len(member.scores))

        config = self.state.config
        await map_bounded(leading[: config.contenders], again, concurrency=config.concurrency)

    async def _wait_for(self, first: Member[C]) -> None:
        pending = self._under_way.get(first.name)
        if pending is not None:
            await asyncio.shield(pending)

    async def _evaluate(self, member: Member[C], replicate: int) -> bool:
        """Run one evaluation; return False where the budget no longer allows it."""
        state = self.state
        while state.budget.must_wait:
            await self._first_cost.wait()
        state.stop = state.stop or state.budget.refuses()
        if state.stop is not None:
            return False
        state.budget.begin()
        trial = state.journal.trials.get((member.name, replicate))
        if trial is None:
            cost = 0.0
            try:
                trial = await self._try(member, replicate)
                cost = trial.score.cost if trial.score else 0.0
            finally:
                state.budget.end(cost)
            state.journal.write_trial(trial)
        else:
            state.budget.end(trial.score.cost if trial.score else 0.0)
        self._first_cost.set()
        self._take(member, trial)
        return True

    def _take(self, member: Member[C], trial: Trial) -> None:
        state = self.state
        if trial.score is not None:
            member.scores.append(trial.score)
            state.tell("evaluated", score=trial.score.value)
            return
        member.error = trial.error
        state.failures += 1
        state.tell("failed", message=trial.error or "")
        if state.config.on_error == "raise":
            raise CallbackError(f"candidate {member.number}: {trial.error}")

    async def _try(self, member: Member[C], replicate: int) -> Trial:
        state = self.state
        for attempt in range(state.config.retries + 1):
            score, error, again = await self._call(member, replicate)
            if not again or attempt == state.config.retries:
                break
            await asyncio.sleep(BACKOFF_SECONDS * 2**attempt)
        return Trial(member.name, replicate, score, error)

    async def _call(
        self, member: Member[C], replicate: int
    ) -> tuple[Score | None, str | None, bool]:
        """Return the score, or the cause and whether another try makes sense."""
        state = self.state
        token = CURRENT.set(state.context("evaluate", member.name, replicate, replicate=replicate))
        try:
            with boundary("evaluate"):
                answer = await self._in_time(member.candidate)
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
