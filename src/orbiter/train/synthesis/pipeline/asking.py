"""Asks the steps for a batch of candidates, checks and scores them, and journals every answer.

Everything here may run for several batches at once. What depends on the order of the batches
(repetitions, the target) is in `run.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import NamedTuple, TypeAlias, cast

from orbiter.train.callback import call, call_here, map_bounded
from orbiter.train.errors import CallbackError, DataError, boundary
from orbiter.train.llm.failure import BudgetError
from orbiter.train.seeding import sub_seed
from orbiter.train.synthesis.journal import Candidate, Journal, Made, Scored
from orbiter.train.synthesis.pipeline.config import SynthesisConfig
from orbiter.train.synthesis.pipeline.result import Rejection
from orbiter.train.synthesis.records import action_of, metadata_of, score_of, state_of
from orbiter.train.synthesis.synthesiser import DataSynthesiser, SynthesisContext
from orbiter.train.trajectory import TrajectoryItem


class Verdict(NamedTuple):
    """A scorer's answer where it has more to say than a number."""

    score: float | None
    """Higher is better; None where it cannot tell."""
    reason: str = ""
    """The reason for the score; stored in the item's metadata as `score_reason`."""
    cost: float = 0.0
    """What the answer has cost, in the unit of `SynthesisConfig.max_cost`."""


Answer: TypeAlias = Verdict | float | None
Scorer: TypeAlias = Callable[[TrajectoryItem], Answer | Awaitable[Answer]]
Validator: TypeAlias = Callable[[TrajectoryItem], bool | Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Batch:
    """One call of the first step, and what the steps behind it make of the answer."""

    number: int
    count: int
    offset: int
    round: int
    accepted: Sequence[TrajectoryItem]


class Answered(NamedTuple):
    """A batch with its answer: an item where it may be taken, a rejection where not."""

    made: Made
    candidates: Sequence[TrajectoryItem | Rejection]


@dataclass(slots=True)
class Desk:
    """Where batches are answered: once each, whatever happens to the process."""

    config: SynthesisConfig
    steps: Sequence[DataSynthesiser]
    seeds: Sequence[TrajectoryItem]
    journal: Journal
    scorer: Scorer | None
    validator: Validator | None
    cost: float
    """Everything spent so far, by whatever batch."""
    _asking: asyncio.Semaphore = field(init=False)
    _scoring: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._asking = asyncio.Semaphore(self.config.concurrency)
        self._scoring = asyncio.Semaphore(self.config.concurrency)

    @property
    def broke(self) -> bool:
        """Whether no more may be spent."""
        return self.config.max_cost is not None and self.cost >= self.config.max_cost

    async def answer(self, batch: Batch) -> Answered | None:
        """Return the answer to `batch`: the journal's or a new one; None if no money is left."""
        try:
            return await self._answer(batch)
        except BudgetError:
            return None

    async def _answer(self, batch: Batch) -> Answered | None:
        made = self.journal.made(batch.number)
        if made is None:
            async with self._asking:
                if self.broke:
                    return None
                made = await self._make(batch)
            self.journal.keep(made)
        elif made.asked != batch.count:
            raise DataError(
                f"batch {batch.number} in the journal asked for {made.asked} items, now it is "
                f"{batch.count}: a step or a validator does not do what it did before"
            )

        async def judge(place: int) -> TrajectoryItem | Rejection:
            return await self._judge(batch.number, place, candidates[place])

        candidates = made.unpacked()
        judged = await map_bounded(
            range(len(candidates)), judge, concurrency=self.config.concurrency
        )
        return Answered(made, judged)

    async def _make(self, batch: Batch) -> Made:
        spent: list[float] = []

        def spend(amount: float) -> None:
            if not 0 <= amount < math.inf:
                raise DataError(f"a cost must be finite and not negative, got {amount!r}")
            spent.append(amount)
            self.cost += amount

        by_step: list[int] = []
        candidates: list[Candidate] = []
        failure = None
        try:
            candidates = await self._chain(batch, spend, by_step)
        except CallbackError as error:
            if self.config.on_error == "raise":
                raise
            failure = f"batch {batch.number}: {error}"
        made = Made.of(batch.number, batch.count, candidates, by_step)
        made.cost, made.failure = sum(spent), failure
        return made

    async def _chain(
        self, batch: Batch, spend: Callable[[float], None], by_step: list[int]
    ) -> list[Candidate]:
        """Call the steps in order; append the number of items that each made to `by_step`."""
        made: list[Candidate] = []
        for place, step in enumerate(self.steps):
            context = SynthesisContext(
                seeds=self.seeds,
                accepted=batch.accepted,
                items=[item for item in made if isinstance(item, TrajectoryItem)],
                round=batch.round,
                offset=batch.offset,
                seed=sub_seed(self.config.seed, "step", place, batch.number),
                spend=spend,
            )
            count = len(context.items) if place else batch.count
            answer = await _generate(step, count, context) if count else ()
            made = [_as_item(item) for item in answer]
            by_step.append(len(made))
        return made

    async def _judge(
        self, batch: int, place: int, candidate: Candidate
    ) -> TrajectoryItem | Rejection:
        if isinstance(candidate, str):
            return Rejection(None, "invalid", candidate)
        if self.validator is not None:
            with boundary("the validator"):
                if not await call_here(self.validator, candidate):
                    return Rejection(candidate, "invalid", "the validator refused it")
        if self.scorer is None or candidate.reward is not None:
            return candidate
        scored = self.journal.scored(batch, place)
        if scored is None:
            async with self._scoring:
                scored = await self._score(self.scorer, batch, place, candidate)
            self.journal.keep(scored)
        if scored.failure is not None:
            return Rejection(candidate, "failed", scored.failure)
        reason = {"score_reason": scored.reason} if scored.reason else {}
        return dataclasses.replace(
            candidate, reward=scored.score, metadata={**candidate.metadata, **reason}
        )

    async def _score(
        self, scorer: Scorer, batch: int, place: int, candidate: TrajectoryItem
    ) -> Scored:
        try:
            with boundary("the scorer"):
                verdict = _verdict(await call(scorer, candidate))
        except CallbackError as error:
            if self.config.on_error == "raise":
                raise
            return Scored(batch, place, None, failure=str(error))
        self.cost += verdict.cost
        return Scored(batch, place, verdict.score, verdict.reason, verdict.cost)


async def _generate(
    step: DataSynthesiser, count: int, context: SynthesisContext
) -> Sequence[object]:
    name = type(step).__name__
    with boundary(f"{name}.generate"):
        answer: object = step.generate(count, context=context)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, AsyncIterator):
            answer = [item async for item in answer]
    if isinstance(answer, str | Mapping) or not isinstance(answer, Sequence):
        raise CallbackError(f"{name}.generate must return a list of items, got {answer!r:.80}")
    return answer


def _as_item(candidate: object) -> Candidate:
    """Return the output of a step as an item, or the reason why it is not valid."""
    if isinstance(candidate, Rejection):
        return candidate.detail
    try:
        item = item_of(candidate)
    except DataError as error:
        return str(error)
    return item if item.state.strip() else f"its state is empty ({item.action!r:.40})"


def item_of(row: object) -> TrajectoryItem:
    """Return a row as an item; what a mapping has beyond an item's fields goes to the metadata.

    Raises:
        DataError: it is neither an item nor a mapping that could be one.
    """
    if isinstance(row, TrajectoryItem):
        return row
    if not isinstance(row, Mapping):
        raise DataError(f"expected a TrajectoryItem or a mapping, got {row!r:.80}")
    own = {name: row[name] for name in _FIELDS if name in row}
    known = {*_FIELDS, *_TEXTS, "metadata"}
    extra = {str(name): value for name, value in row.items() if name not in known}
    return TrajectoryItem(
        state_of(row),
        action_of(row),
        score_of(row),
        {**extra, **metadata_of(row)},
        **cast("dict[str, None]", own),
    )


_TEXTS = ("state", "action", "reward", "input", "output", "score")
_FIELDS = tuple(field.name for field in dataclasses.fields(TrajectoryItem) if field.kw_only is True)


def _verdict(answer: object) -> Verdict:
    score, reason, cost = answer if isinstance(answer, Verdict) else (answer, "", 0.0)
    if score is None:
        return Verdict(None, reason, cost)
    if not isinstance(score, Real) or not math.isfinite(score):
        raise CallbackError(f"the scorer must answer with a finite number or None, got {score!r}")
    return Verdict(float(score), reason, cost)
