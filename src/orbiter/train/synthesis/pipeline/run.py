"""One run of a pipeline: rounds of asking, and the decisions that depend on the order.

Batches of a round are answered in any order and decided in theirs, so the result is the same at
any concurrency. What a round is asked for depends only on what was decided before it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from orbiter.train.errors import DataError
from orbiter.train.synthesis.pipeline.asking import Answered, Batch, Desk
from orbiter.train.synthesis.pipeline.repetition import Repetitions
from orbiter.train.synthesis.pipeline.result import (
    Rejection,
    RejectReason,
    StopReason,
    SynthesisResult,
)
from orbiter.train.trajectory import TrajectoryItem

_AHEAD = 8
"""Batches answered or waiting behind the one to be decided next, for each call at once."""


@dataclass(slots=True)
class Run:
    """The state of one run; `items()` makes it go, `result()` reads it."""

    desk: Desk
    unused_seed_count: int
    accepted: list[TrajectoryItem] = field(default_factory=list[TrajectoryItem])
    rejections: list[Rejection] = field(default_factory=list[Rejection])
    stop_reason: StopReason = "cancelled"
    generated: int = 0
    trimmed: int = 0
    unscored: int = 0
    rounds: int = 0
    _barren: int = 0
    _asked: int = 0
    _batches: int = 0
    _dry: bool = False
    _broke: bool = False
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
                accepted, generated = len(self.accepted), self.generated
                async for answered in self._round(ask):
                    for item in self._decide(answered):
                        yield item
                self.rounds += 1
                self._barren = 0 if len(self.accepted) > accepted else self._barren + 1
                self._dry = self.generated == generated
        finally:
            await self._settle()

    def stop(self) -> None:
        """Let the run end with what it has; batches under way are given up."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()

    def _next_ask(self) -> int:
        """Return how many candidates the next round asks for, or 0 having named why none."""
        config = self.desk.config
        need = config.target_size - len(self.accepted)
        room = config.most_candidates - self.generated
        reasons: list[tuple[bool, StopReason]] = [
            (need <= 0, "target"),
            (self._stopping, "cancelled"),
            (self._broke, "budget"),
            (self._dry or self._barren >= config.patience, "exhausted"),
            (room <= 0, "max_candidates"),
        ]
        for applies, reason in reasons:
            if applies:
                self.stop_reason = reason
                return 0
        ask = need
        if self.accepted:
            ask = math.ceil(need * self.generated / len(self.accepted))
        return min(ask << self._barren, room)

    def result(self) -> SynthesisResult:
        """Return what has become of the run so far."""
        names = [f"{place}:{type(step).__name__}" for place, step in enumerate(self.desk.steps)]
        return SynthesisResult(
            items=self.accepted,
            stop_reason=self.stop_reason,
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
        accepted, size = tuple(self.accepted), self.desk.config.batch_size
        starts = iter(range(0, ask, size))
        while True:
            for start in itertools.islice(starts, self._room()):
                count = min(size, ask - start)
                batch = Batch(self._batches, count, self._asked, self.rounds, accepted)
                self._tasks.append(asyncio.create_task(self.desk.answer(batch)))
                self._batches += 1
                self._asked += count
            if not self._tasks:
                return
            await asyncio.wait({self._tasks[0]})
            if self._stopping:
                return
            answered = self._tasks.popleft().result()
            if answered is None:
                self._broke = True
                return
            yield answered

    def _room(self) -> int:
        """Return how many batches may be begun: enough that a slow one holds up no other."""
        return _AHEAD * self.desk.config.concurrency - len(self._tasks)

    def _decide(self, answered: Answered) -> Iterator[TrajectoryItem]:
        """Accept or reject the candidates of one batch, in their order."""
        self._count(answered)
        judged = [self._by_score(candidate) for candidate in answered.candidates]
        unrepeated = self._by_repetition([c for c in judged if isinstance(c, TrajectoryItem)])
        for candidate in judged:
            verdict = next(unrepeated) if isinstance(candidate, TrajectoryItem) else candidate
            if len(self.accepted) >= self.desk.config.target_size:
                self.trimmed += 1
                continue
            if isinstance(candidate, TrajectoryItem) and self._lacks_score(candidate):
                self._note_unscored()
            if isinstance(verdict, Rejection):
                self._reject(verdict)
            else:
                self.accepted.append(verdict)
                yield verdict

    def _count(self, answered: Answered) -> None:
        self.generated += len(answered.candidates)
        for place, made in enumerate(answered.made.by_step):
            self._made_by_step[place] += made
        if answered.made.failure is not None:
            self._failures.append(answered.made.failure)

    def _by_score(self, candidate: TrajectoryItem | Rejection) -> TrajectoryItem | Rejection:
        config = self.desk.config
        if isinstance(candidate, Rejection) or config.min_score is None:
            return candidate
        if candidate.reward is None:
            if config.unscored == "keep":
                return candidate
            return Rejection(candidate, "unscored", "it has no score, and no scorer gave it one")
        if candidate.reward < config.min_score:
            detail = f"its score is {candidate.reward:g}, below {config.min_score:g}"
            return Rejection(candidate, "score", detail)
        return candidate

    def _by_repetition(
        self, candidates: Sequence[TrajectoryItem]
    ) -> Iterator[TrajectoryItem | Rejection]:
        if self._repetitions is None:
            yield from candidates
            return
        found = self._repetitions.admit(candidates)
        for candidate, repeats in zip(candidates, found, strict=True):
            if repeats is None:
                yield candidate
                continue
            reason: RejectReason = "duplicate" if repeats.seed is None else "duplicate_of_seed"
            original = "an accepted item" if repeats.seed is None else f"seed {repeats.seed}"
            yield Rejection(candidate, reason, f"{repeats.similarity:.3f} similar to {original}")

    def _lacks_score(self, candidate: TrajectoryItem) -> bool:
        return candidate.reward is None and self.desk.config.min_score is not None

    def _note_unscored(self) -> None:
        if not self.unscored:
            warnings.warn(
                "a candidate has no score and passes min_score; give the pipeline a scorer=, or "
                'say unscored="drop"',
                stacklevel=2,
            )
        self.unscored += 1

    def _reject(self, rejection: Rejection) -> None:
        if rejection.reason == "unscored" and self.desk.config.unscored == "raise":
            raise DataError(
                f"candidate {len(self.accepted) + len(self.rejections)} has no score, and "
                'unscored="raise"; give the pipeline a scorer='
            )
        if rejection.reason == "failed":
            self._failures.append(rejection.detail)
        self.rejections.append(rejection)

    async def _settle(self) -> None:
        """Give up what is under way; what was answered but not decided is counted as trimmed."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for task in self._tasks:
            if task.cancelled() or task.exception() is not None:
                continue
            answered = task.result()
            if answered is not None:
                self._count(answered)
                self.trimmed += len(answered.candidates)
        self._tasks.clear()
