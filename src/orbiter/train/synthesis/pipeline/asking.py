"""Answers batches: calls the steps, checks and scores the candidates, and writes to the journal.

Several batches may be in progress at once. Whatever depends on the order of the batches
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
from orbiter.train.errors import CallbackError, DataError, TrainError, boundary
from orbiter.train.llm.failure import BudgetError
from orbiter.train.seeding import sub_seed
from orbiter.train.synthesis.journal import (
    AnswerJournal,
    Candidate,
    Made,
    RefusedCandidate,
    ScoredCandidate,
)
from orbiter.train.synthesis.pipeline.config import SynthesisConfig
from orbiter.train.synthesis.pipeline.result import Rejection
from orbiter.train.synthesis.records import action_of, metadata_of, score_of, state_of
from orbiter.train.synthesis.synthesiser import DataSynthesiser, SynthesisContext
from orbiter.train.trajectory import TrajectoryItem


class Verdict(NamedTuple):
    """A scorer's answer, if it is more than a number."""

    score: float | None
    """Higher is better; None if the scorer cannot tell."""
    reason: str = ""
    """The reason for the score; stored in the item's metadata as `score_reason`."""
    cost: float = 0.0
    """Cost of the answer, in the unit of `SynthesisConfig.max_cost`."""


Answer: TypeAlias = Verdict | float | None
Scorer: TypeAlias = Callable[[TrajectoryItem], Answer | Awaitable[Answer]]
Validator: TypeAlias = Callable[[TrajectoryItem], bool | Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class FirstStepCall:
    """One call of the first step, and the later steps' processing of its answer."""

    number: int
    count: int
    offset: int
    round: int
    accepted: Sequence[TrajectoryItem]


class Answered(NamedTuple):
    """A batch with its answer: an item if it may be accepted, or else a rejection."""

    made: Made
    candidates: Sequence[TrajectoryItem | Rejection]


@dataclass(slots=True)
class Desk:
    """Answers batches, each only once, even if the process is killed meanwhile."""

    config: SynthesisConfig
    steps: Sequence[DataSynthesiser]
    seeds: Sequence[TrajectoryItem]
    journal: AnswerJournal
    scorer: Scorer | None
    validator: Validator | None
    cost: float
    """Total spent so far, by all batches."""
    spent_budget: str = ""
    """The error of a language model whose budget is spent."""
    _asking: asyncio.Semaphore = field(init=False)
    _scoring: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._asking = asyncio.Semaphore(self.config.concurrency)
        self._scoring = asyncio.Semaphore(self.config.concurrency)

    @property
    def broke(self) -> bool:
        """Whether the budget is spent."""
        most = self.config.max_cost
        return bool(self.spent_budget) or (most is not None and self.cost >= most)

    async def answer(self, batch: FirstStepCall) -> Answered | None:
        """Return the answer to `batch`, the journal's or a new one; None if the budget is spent.

        Raises:
            CallbackError: a step or the scorer failed, and `on_error` is "raise".
        """
        try:
            return await self._answer(batch)
        except BudgetError as error:
            # The run ends with what it has; a spent budget is no error of the batch.
            self.spent_budget = str(error)
            return None

    async def _answer(self, batch: FirstStepCall) -> Answered | None:
        made = await self._made(batch)
        if made is None:
            return None

        async def judge(place: int) -> TrajectoryItem | Rejection:
            return await self._judge(batch.number, place, candidates[place])

        # As read back from the journal, so that a fresh run and a resumed one see the same items.
        candidates = made.unpacked()
        judged = await map_bounded(
            range(len(candidates)), judge, concurrency=self.config.concurrency
        )
        return Answered(made, judged)

    async def _made(self, batch: FirstStepCall) -> Made | None:
        """Return the candidates of a batch; those that failed in an earlier process are retried."""
        kept = self.journal.made(batch.number)
        failed = {} if kept is None else kept.failed()
        if kept is not None and not failed:
            return kept
        async with self._asking:
            # Looked at again here: another batch may have spent the rest while this one waited.
            if self.broke:
                return kept
            return await self._make(batch, kept, failed)

    async def _make(
        self, batch: FirstStepCall, kept: Made | None, failed: Mapping[int, RefusedCandidate]
    ) -> Made | None:
        """Ask for a batch, or again for the `failed` places of a `kept` one, and write it down.

        Returns None if the budget was spent before anything was asked.
        """
        outcome = _PassOutcome(self)
        failure = None
        try:
            await self._chain(batch, failed, outcome)
        except CallbackError as error:
            if self.config.on_error == "raise":
                raise
            if kept is not None:  # its other candidates are good
                return kept
            failure = f"batch {batch.number}: {error}"
        if kept is None and outcome.is_unasked:
            return None
        candidates, by_step = outcome.candidates, outcome.by_step
        if kept is not None:
            candidates = _replaced(kept.unpacked(), list(failed), candidates)
            by_step = list(kept.by_step)
        made = Made.of(batch.number, batch.count, candidates, by_step, offset=batch.offset)
        made.cost, made.failure = outcome.cost, failure
        self.journal.keep(made)
        if outcome.errors and self.config.on_error == "raise":
            raise outcome.errors[0]
        return made

    async def _chain(
        self, batch: FirstStepCall, failed: Mapping[int, RefusedCandidate], outcome: _PassOutcome
    ) -> None:
        """Call the steps in order; earlier failures enter again at the step that failed."""
        items: list[TrajectoryItem] = []
        refused: list[Candidate] = []
        # Another seed, or a sampled answer that failed would be the same one again.
        again = ("again",) if failed else ()
        for index, step in enumerate(self.steps):
            items += [each.source for each in failed.values() if each.step == index]
            context = SynthesisContext(
                seeds=self.seeds,
                accepted=batch.accepted,
                items=items,
                round=batch.round,
                offset=batch.offset,
                seed=sub_seed(self.config.seed, "step", index, batch.number, *again),
                spend=outcome.spend,
                report_failure=outcome.report_failure,
            )
            # Only the first step is asked for a number; later ones get one candidate for each item.
            count = len(items) if index or failed else batch.count
            answer = await _generate(step, count, context) if count else ()
            outcome.by_step.append(len(answer))
            made = [_as_candidate(each, index) for each in answer]
            items = [each for each in made if isinstance(each, TrajectoryItem)]
            outcome.candidates = [*made, *refused]
            # After the output was recorded, which puts this step's refusals first.
            refused += [each for each in made if not isinstance(each, TrajectoryItem)]

    async def _judge(
        self, batch: int, place: int, candidate: Candidate
    ) -> TrajectoryItem | Rejection:
        if isinstance(candidate, RefusedCandidate):
            return candidate.rejection
        if self.validator is not None:
            try:
                with boundary("the validator"):
                    is_valid = await call_here(self.validator, candidate)
            except CallbackError as error:
                if self.config.on_error == "raise":
                    raise
                return Rejection(candidate, "failed", str(error))
            if not is_valid:
                return Rejection(candidate, "invalid", "the validator refused it")
        # A step may give rewards itself, such as by a verifier.
        if self.scorer is None or candidate.reward is not None:
            return candidate
        scored = self.journal.scored(batch, place)
        if scored is None:
            # Apart from the steps' limit, so that slow scoring does not hold up the asking.
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
    ) -> ScoredCandidate:
        try:
            with boundary("the scorer"):
                verdict = _verdict(await call(scorer, candidate))
        except (CallbackError, DataError) as error:
            if self.config.on_error == "raise":
                raise
            return ScoredCandidate(batch, place, None, failure=str(error))
        self.cost += verdict.cost
        return ScoredCandidate(batch, place, verdict.score, verdict.reason, verdict.cost)


@dataclass(slots=True)
class _PassOutcome:
    """The output and the cost of one pass through the steps so far."""

    desk: Desk
    candidates: list[Candidate] = field(default_factory=list[Candidate])
    """The output of the last step, then what earlier steps rejected."""
    by_step: list[int] = field(default_factory=list[int])
    cost: float = 0.0
    errors: list[TrainError] = field(default_factory=list[TrainError])
    """The failures of single items."""

    def spend(self, amount: float) -> None:
        """Record the cost of an answer."""
        if not 0 <= amount < math.inf:
            raise DataError(f"a cost must be finite and not negative, got {amount!r}")
        self.cost += amount
        self.desk.cost += amount

    def report_failure(self, error: TrainError) -> None:
        """Record that an item could not be made."""
        if isinstance(error, BudgetError):
            self.desk.spent_budget = str(error)
        else:
            self.errors.append(error)

    @property
    def is_unasked(self) -> bool:
        """Whether the budget was spent before anything was asked."""
        return bool(self.candidates) and all(
            isinstance(each, RefusedCandidate) and each.rejection.reason == "budget"
            for each in self.candidates
        )


def _replaced(
    kept: list[Candidate], places: Sequence[int], retried: Sequence[Candidate]
) -> list[Candidate]:
    """Put the retried candidates at the positions of the failed ones; the others do not move."""
    for index, candidate in zip(places, retried, strict=False):
        kept[index] = candidate
    # A step may return more than was asked for.
    return [*kept, *retried[len(places) :]]


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
    # A text is a sequence of characters, and a mapping one of keys: neither is a list of items.
    if isinstance(answer, str | Mapping) or not isinstance(answer, Sequence):
        raise CallbackError(f"{name}.generate must return a list of items, got {answer!r:.80}")
    return answer


def _as_candidate(made: object, step: int) -> Candidate:
    """Return the output of a step as an item, or the reason why it is not a valid item."""
    if isinstance(made, Rejection):
        return RefusedCandidate(made, step)
    try:
        item = item_of(made)
    except DataError as error:
        return RefusedCandidate(Rejection(None, "invalid", str(error)), step)
    if item.state.strip():
        return item
    detail = f"its state is empty ({item.action!r:.40})"
    return RefusedCandidate(Rejection(None, "invalid", detail), step)


def item_of(row: object) -> TrajectoryItem:
    """Return a row as an item; other entries of a mapping go to the item's metadata.

    Raises:
        DataError: it is neither an item nor a suitable mapping.
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
