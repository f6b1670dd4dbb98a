"""Runs a pipeline: rounds of batches, and the decisions that depend on their order.

The batches of a round are answered in any order and decided in theirs, so the result is the same
at any concurrency. What a round asks for depends only on what was decided before it, or on the
journal: a batch that an earlier process asked for is the same batch again, whatever the target is
now.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from orbiter.train.errors import DataError
from orbiter.train.synthesis.journal import BatchPlan
from orbiter.train.synthesis.pipeline.asking import Answered, Desk, FirstStepCall
from orbiter.train.synthesis.pipeline.repetition import Repetitions
from orbiter.train.synthesis.pipeline.result import (
    Rejection,
    RejectReason,
    StopReason,
    SynthesisResult,
)
from orbiter.train.trajectory import TrajectoryItem

_AHEAD = 8
"""The maximum number of batches per concurrent call that may be ahead of the next one to decide."""
_MOST_FAILURES = 64
"""A run ends after this many failures in a row, or earlier if a whole round fails."""


@dataclass(slots=True)
class PipelineRun:
    """The state of one run: `items()` advances it, `result()` reads it."""

    desk: Desk
    unused_seed_count: int
    accepted: list[TrajectoryItem] = field(default_factory=list[TrajectoryItem])
    rejections: list[Rejection] = field(default_factory=list[Rejection])
    stop_reason: StopReason = "cancelled"
    stop_cause: str = ""
    generated: int = 0
    trimmed: int = 0
    unscored: int = 0
    rounds: int = 0
    _barren: int = 0
    _asked: int = 0
    _batches: int = 0
    _failed_in_a_row: int = 0
    _dry: bool = False
    _only_failures: bool = False
    _broke: bool = False
    _has_warned: bool = False
    _stopping: bool = False
    _made_by_step: list[int] = field(default_factory=list[int])
    _failures: list[str] = field(default_factory=list[str])
    _tasks: deque[asyncio.Task[Answered | None]] = field(default_factory=deque)
    _repetitions: Repetitions | None = None

    def __post_init__(self) -> None:
        self._made_by_step = [0] * len(self.desk.steps)
        if self.desk.config.dedup_threshold is not None:
            self._repetitions = Repetitions(self.desk.config.dedup_threshold, self.desk.seeds)

    async def items(self) -> AsyncGenerator[TrajectoryItem, None]:
        """Yield the accepted items as they are accepted, until there is a reason to stop."""
        try:
            while (ask := self._next_ask()) > 0:
                # Remembered to see afterwards what this round brought.
                accepted, generated = len(self.accepted), self.generated
                failures = len(self._failures)
                async for answered in self._round(ask):
                    for item in self._decide(answered):
                        yield item
                self.rounds += 1
                self._barren = 0 if len(self.accepted) > accepted else self._barren + 1
                failed = len(self._failures) - failures
                # Not if the steps failed: they may have more to give once they work again.
                self._dry = self.generated == generated and not failed
                self._only_failures = self._only_failures or (
                    failed > 0 and self._failed_in_a_row >= self.generated - generated
                )
        finally:
            await self._settle()

    def stop(self) -> None:
        """End the run with the items accepted so far; active batches are abandoned."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()

    def _next_ask(self) -> int:
        """Return how many candidates the next round asks for, or set the reason to stop: 0."""
        config = self.desk.config
        need = config.target_size - len(self.accepted)
        room = config.most_candidates - self.generated
        reasons: list[tuple[bool, StopReason]] = [
            (need <= 0, "target"),
            (self._stopping, "cancelled"),
            (self._broke, "budget"),
            (self._only_failures, "failures"),
            (self._dry or self._barren >= config.patience, "exhausted"),
            (room <= 0, "max_candidates"),
        ]
        for applies, reason in reasons:
            if applies:
                self.stop_reason = reason
                if reason == "failures":
                    self.stop_cause = self._failures[-1]
                elif reason == "budget":
                    self.stop_cause = self.desk.spent_budget
                return 0
        ask = need
        if self.accepted:
            # As many as the acceptance so far suggests.
            ask = math.ceil(need * self.generated / len(self.accepted))
        # Twice as many after each round without success.
        return min(ask << self._barren, room)

    def result(self) -> SynthesisResult:
        """Return the result so far."""
        names = [f"{index}:{type(step).__name__}" for index, step in enumerate(self.desk.steps)]
        return SynthesisResult(
            items=self.accepted,
            stop_reason=self.stop_reason,
            stop_cause=self.stop_cause,
            generated_count=self.generated,
            trimmed_count=self.trimmed,
            rejections=self.rejections,
            unscored_count=self.unscored,
            seed_count=len(self.desk.seeds),
            unused_seed_count=self.unused_seed_count,
            rounds=self.rounds,
            cost=self.desk.cost,
            made_by_step=dict(zip(names, self._made_by_step, strict=True)),
            failures=self._failures,
        )

    async def _round(self, ask: int) -> AsyncIterator[Answered]:
        """Ask for `ask` candidates in batches and yield the answers in the batches' order."""
        # A snapshot: what a batch sees must not depend on how fast the others are.
        accepted, open_count = tuple(self.accepted), ask
        while True:
            for _ in range(self._room()):
                if open_count <= 0 or self._only_failures:
                    break
                plan = self._next_plan(open_count)
                batch = FirstStepCall(self._batches, plan.asked, plan.offset, self.rounds, accepted)
                self._tasks.append(asyncio.create_task(self.desk.answer(batch)))
                self._batches += 1
                self._asked = plan.offset + plan.asked
                open_count -= plan.asked
            if not self._tasks:
                return
            # Only the oldest is waited for, because decisions are made in the batches' order.
            await asyncio.wait({self._tasks[0]})
            if self._stopping:
                return
            answered = self._tasks.popleft().result()
            if answered is None:
                self._broke = True
                return
            yield answered
            if self._only_failures:
                return

    def _next_plan(self, most: int) -> BatchPlan:
        """Return what the next batch asks for: as in the journal, if it is there."""
        journal = self.desk.journal
        plan = journal.plan(self._batches)
        if plan is not None:
            return plan
        asked = min(self.desk.config.batch_size, most)
        following = journal.plan(self._batches + 1)
        if following is not None:  # the process was killed before this batch was answered
            asked = max(1, min(asked, following.offset - self._asked))
        return BatchPlan(asked, self._asked)

    def _room(self) -> int:
        """Return how many batches may be started: enough that a slow one delays no other."""
        return _AHEAD * self.desk.config.concurrency - len(self._tasks)

    def _decide(self, answered: Answered) -> Iterator[TrajectoryItem]:
        """Accept or reject the candidates of one batch, in their order."""
        self._count(answered)
        judged = [self._by_score(candidate) for candidate in answered.candidates]
        # All of the batch at once, which is faster; the index decides in their order.
        unrepeated = self._by_repetition([c for c in judged if isinstance(c, TrajectoryItem)])
        for candidate in judged:
            verdict = next(unrepeated) if isinstance(candidate, TrajectoryItem) else candidate
            # Checked for each candidate: the target may be reached in the middle of a batch.
            if len(self.accepted) >= self.desk.config.target_size:
                self.trimmed += 1
                continue
            if isinstance(candidate, TrajectoryItem) and self._lacks_score(candidate):
                self.unscored += 1
                self._warn_of_unscored()
            if isinstance(verdict, Rejection):
                self._reject(verdict)
            else:
                self._failed_in_a_row = 0
                self.accepted.append(verdict)
                yield verdict
        self._only_failures = self._failed_in_a_row >= _MOST_FAILURES

    def _count(self, answered: Answered) -> None:
        self.generated += len(answered.candidates)
        for index, made in enumerate(answered.made.by_step):
            self._made_by_step[index] += made
        if answered.made.failure is not None:
            self._failures.append(answered.made.failure)
            # A batch that failed as a whole failed for each item that it was asked for.
            self._failed_in_a_row += answered.made.asked

    def _by_score(self, candidate: TrajectoryItem | Rejection) -> TrajectoryItem | Rejection:
        config = self.desk.config
        if isinstance(candidate, Rejection):
            return candidate
        if candidate.reward is None:
            if not self._lacks_score(candidate) or self._unscored == "keep":
                return candidate
            reason = candidate.metadata.get("score_reason")
            detail = f"the scorer did not score it{f': {reason}' if reason else ''}"
            if self.desk.scorer is None:
                detail = "it has no score, and there is no scorer"
            return Rejection(candidate, "unscored", detail)
        if config.min_score is not None and candidate.reward < config.min_score:
            detail = f"its score is {candidate.reward:g}, below {config.min_score:g}"
            return Rejection(candidate, "score", detail)
        return candidate

    @property
    def _unscored(self) -> str:
        """How to treat candidates without a score; without a scorer, none can have one."""
        default = "keep" if self.desk.scorer is None else "drop"
        return self.desk.config.unscored or default

    def _by_repetition(
        self, candidates: Sequence[TrajectoryItem]
    ) -> Iterator[TrajectoryItem | Rejection]:
        if self._repetitions is None:
            yield from candidates
            return
        repeated = self._repetitions.admit(candidates)
        for candidate, repeats in zip(candidates, repeated, strict=True):
            if repeats is None:
                yield candidate
                continue
            reason: RejectReason = "duplicate" if repeats.seed is None else "duplicate_of_seed"
            original = "an accepted item" if repeats.seed is None else f"seed {repeats.seed}"
            yield Rejection(candidate, reason, f"{repeats.similarity:.3f} similar to {original}")

    def _lacks_score(self, candidate: TrajectoryItem) -> bool:
        wants_scores = self.desk.config.min_score is not None or self.desk.scorer is not None
        return candidate.reward is None and wants_scores

    def _warn_of_unscored(self) -> None:
        """Warn once, unless the config sets how to treat candidates without a score."""
        if self._has_warned or self.desk.config.unscored is not None:
            return
        self._has_warned = True
        if self.desk.scorer is None:
            fate = "accepted, since there is no scorer; give the pipeline a scorer="
        else:
            fate = "rejected"
        warnings.warn(
            f"a candidate has no score. Such candidates are {fate} (unscored= decides)",
            stacklevel=2,
        )

    def _reject(self, rejection: Rejection) -> None:
        if rejection.reason == "unscored" and self._unscored == "raise":
            raise DataError(
                f"candidate {len(self.accepted) + len(self.rejections)} has no score, and "
                f'unscored="raise": {rejection.detail}'
            )
        if rejection.reason == "unscored":
            self._warn_of_unscored()
        if rejection.reason == "failed":
            self._failures.append(rejection.detail)
            self._failed_in_a_row += 1
        # A spent budget is neither a failure nor a sign that the model works.
        elif rejection.reason != "budget":
            self._failed_in_a_row = 0
        self.rejections.append(rejection)

    async def _settle(self) -> None:
        """Abandon active batches; answered candidates that are not decided count as trimmed."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for task in self._tasks:
            if task.cancelled() or task.exception() is not None:
                continue
            answered = task.result()
            if answered is not None:
                # They were paid for and are in the journal, so the totals include them.
                self._count(answered)
                self.trimmed += len(answered.candidates)
        self._tasks.clear()
