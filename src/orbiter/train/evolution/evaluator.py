"""Scores members: bounded in number and time, each once, and every failure is handled.

A failure is data here: an evaluation that raises, hangs or returns NaN leaves a member with its
cause and without a score, and the run continues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

from orbiter.train.callback import map_bounded, prepare
from orbiter.train.errors import CallbackError, DataError, TrainError, boundary
from orbiter.train.evolution.config import StopReason
from orbiter.train.evolution.event import EvolutionPhase
from orbiter.train.evolution.journal import Trial
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.state import State
from orbiter.train.evolution.strategy import CURRENT, Context, Score, as_score
from orbiter.train.llm.failure import BudgetError

C = TypeVar("C")

BACKOFF_SECONDS = 0.1
"""Before the first retry; doubled for each further one."""


class Evaluator(Generic[C]):
    """Evaluates the members of a run."""

    def __init__(self, state: State[C]) -> None:
        self.state = state
        self._running: dict[str, asyncio.Future[None]] = {}
        self._ended = asyncio.Event()
        self._evaluate_candidate: Callable[[C], Awaitable[float | Score]] = prepare(
            state.strategy.evaluate
        )

    async def score_new(self, members: Sequence[Member[C]]) -> list[Member[C]]:
        """Score members without a score; return those that were scored or failed, by birth.

        With `cache`, equal members share one evaluation, even while it is running. If the budget
        runs out, `state.stop` is set and the remaining members are left out.
        """
        await map_bounded(members, self.score_one, concurrency=self.state.config.concurrency)
        return [m for m in members if m.error is not None or m.scores]

    async def score_one(self, member: Member[C]) -> None:
        """Score one member, all its replicates, or take the score of an equal member."""
        state = self.state
        # Equal candidates share the evaluation of the first one, which may still be running.
        first = state.known[member.key]
        if first is not member and state.config.cache:
            # The first one's evaluation may fail, which then holds for all equal members.
            await self._wait_for(first)
            member.scores, member.error = first.scores, first.error
            state.cache_hits += bool(first.scores)
            return
        done = asyncio.get_running_loop().create_future()
        self._running[member.name] = done
        try:
            while member.tried < state.config.replicates and member.error is None:
                if not await self._evaluate(member):
                    break
        finally:
            done.set_result(None)
            del self._running[member.name]

    async def score_again(self, population: Sequence[Member[C]]) -> None:
        """Evaluate the leading members once more and pool the scores, so that luck averages out."""
        leading = [m for m in ranked(population) if m.error is None and m.scores]

        async def again(member: Member[C]) -> None:
            await self._evaluate(member)

        config = self.state.config
        await map_bounded(leading[: config.contenders], again, concurrency=config.concurrency)

    async def confirm(self, winner: Member[C]) -> list[Score]:
        """Evaluate the winner afresh, `confirm` times; return these scores alone."""

        async def once(number: int) -> Score | None:
            # Confirmations count against the budget, which the search may have used up.
            if state.stop is StopReason.BUDGET or state.budget.refuses_to_confirm():
                return None
            trial = await self._run(winner, f"{winner.name}, confirmed", number)
            if trial is None:
                return None
            self._count_failures(trial)
            return trial.score

        state = self.state
        state.enter(EvolutionPhase.EVALUATING)
        numbers = range(state.config.confirm)
        scores = await map_bounded(numbers, once, concurrency=state.config.concurrency)
        return [score for score in scores if score is not None]

    async def _wait_for(self, first: Member[C]) -> None:
        pending = self._running.get(first.name)
        if pending is not None:
            # Shielded: cancelling one waiting member must not cancel the evaluation.
            await asyncio.shield(pending)

    async def _evaluate(self, member: Member[C]) -> bool:
        """Run one evaluation; return False if the budget does not allow it."""
        state = self.state
        # The costs of running evaluations are not known yet, and may use up max_cost.
        # A loop: another waiter may have taken the room first.
        while state.budget.must_wait:
            self._ended.clear()
            await self._ended.wait()
        state.stop = state.stop or state.budget.refuses()
        if state.stop is not None:
            return False
        # Counted before the await, so that concurrent calls get different replicates.
        member.tried += 1
        trial = await self._run(member, member.name, member.tried - 1)
        if trial is None:
            member.tried -= 1
            return False
        self._add_trial(member, trial)
        return True

    async def _run(self, member: Member[C], name: str, replicate: int) -> Trial | None:
        """Return a finished evaluation, from the journal if it is there.

        None means that the budget of a language model is spent; `state.stop` is then set.
        """
        state = self.state
        # Journalled evaluations count too, so a resumed run stops at the same point.
        state.budget.begin()
        trial = state.journal.trials.get((name, replicate))
        cost = trial.cost if trial else 0.0
        try:
            if trial is None:
                trial = await self._try(member, name, replicate)
                cost = trial.cost
                # Written before the result is used, so no later step depends on a score that may
                # be lost.
                state.journal.write_trial(trial)
        except BudgetError as error:
            state.end(StopReason.BUDGET, str(error))
            return None
        finally:
            # Also for an evaluation that failed, whose cost was paid.
            state.budget.end(cost)
            self._ended.set()
        return trial

    def _add_trial(self, member: Member[C], trial: Trial) -> None:
        self._count_failures(trial)
        if trial.score is not None:
            member.scores.append(trial.score)
            self.state.emit("evaluated", score=trial.score.value)
        # A later failure of a member that has a score is counted but does not remove the score.
        elif not member.scores:
            member.error = trial.error
        errors = self._errors(trial)
        if errors and self.state.config.on_error == "raise":
            raise CallbackError(f"candidate {member.number}: {errors[0]}")

    def _errors(self, trial: Trial) -> list[str]:
        """Return the reasons why the evaluation, or some of its instances, failed."""
        if trial.score is None:
            return [trial.error or ""]
        failed = trial.score.failed or {}
        return [f"instance {name!r}: {reason}" for name, reason in failed.items()]

    def _count_failures(self, trial: Trial) -> None:
        for error in self._errors(trial):
            self.state.failures += 1
            self.state.emit("failed", message=error)

    async def _try(self, member: Member[C], name: str, replicate: int) -> Trial:
        state, cost = self.state, 0.0
        parent = state.members[member.parents[0]] if member.parents else None
        for attempt in range(state.config.retries + 1):
            context = state.context(
                "evaluate",
                name,
                replicate,
                child=member.name,
                replicate=replicate,
                parent=parent,
                earlier=state.journal.partial.get((name, replicate)),
            )
            outcome = await self._call(member.candidate, context)
            score = outcome.score
            cost += context.cost + (score.cost if score else 0.0)
            if not outcome.may_retry or attempt == state.config.retries:
                break
            # Exponential, as the likely cause is an overloaded server.
            await asyncio.sleep(BACKOFF_SECONDS * 2**attempt)
        if score is not None and cost != score.cost:
            score = replace(score, cost=cost)
        return Trial(name, replicate, score, outcome.error, cost)

    async def _call(self, candidate: C, context: Context) -> _CallOutcome:
        # A context variable, so that concurrent evaluations each see their own context.
        token = CURRENT.set(context)
        try:
            with boundary("evaluate"):
                answer = await self._in_time(candidate)
            return _CallOutcome(as_score(answer), None, may_retry=False)
        except BudgetError:
            raise
        except DataError as error:
            return _CallOutcome(None, str(error), may_retry=False)
        except TrainError as error:
            return _CallOutcome(None, str(error), may_retry=True)
        finally:
            CURRENT.reset(token)

    async def _in_time(self, candidate: C) -> float | Score:
        limit = self.state.config.timeout
        if limit is None:
            return await self._evaluate_candidate(candidate)
        try:
            async with asyncio.timeout(limit) as timeout:
                return await self._evaluate_candidate(candidate)
        except TimeoutError:
            # A TimeoutError of the user's own code is not ours.
            if not timeout.expired():
                raise
            raise CallbackError(f"evaluate did not end within {limit:g} s") from None


class _CallOutcome(NamedTuple):
    """One call of `evaluate`."""

    score: Score | None
    error: str | None
    may_retry: bool
    """Whether another try may succeed."""
