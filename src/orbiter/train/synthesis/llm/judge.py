"""Scores items with a language model by a rubric: a number in [0, 1] and a reason.

    judge = Judge(model, "Is the answer right? Is it short?", votes=3)
    pipeline = SynthesisPipeline(SynthesisConfig(min_score=0.7), scorer=judge)

How good such judges are and how they err: Zheng et al. 2023, https://arxiv.org/abs/2306.05685.
`judging.calibrate` compares yours with labels of people. `judging.GroupJudge` compares answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated

import msgspec
from typing_extensions import override

from orbiter.train.callback import map_bounded
from orbiter.train.chat.message import Message
from orbiter.train.judging.base import Attempt, BaseJudge, Ruling
from orbiter.train.judging.group import shown_once
from orbiter.train.llm.chat import ChatModel, sample_of
from orbiter.train.llm.structured import UnfitAnswersError, ask_for
from orbiter.train.synthesis.pipeline.asking import Verdict
from orbiter.train.trajectory import TrajectoryItem

QUESTION = (
    "Judge the answer to the task by this rubric:\n{rubric}\n\nTask:\n{state}\n\nAnswer:\n{action}"
    "\n\nGive a score between 0 (bad) and 1 (very good), and the reason in one sentence."
)


class Vote(msgspec.Struct):
    """One answer of the judge."""

    reason: str
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]


class Judge(BaseJudge):
    """Scores items by a rubric; each vote is a sample, so that a cache keeps them apart."""

    def __init__(
        self,
        model: ChatModel,
        rubric: str,
        *,
        votes: int = 1,
        max_calls: int | None = None,
        max_cost: float | None = None,
    ) -> None:
        """Make a judge; the score is the median of `votes` answers.

        Raises:
            ConfigError: the rubric is empty, or a number is out of its range.
        """
        super().__init__(model, rubric, votes=votes, max_calls=max_calls, max_cost=max_cost)
        self._agreements: list[float] = []

    @property
    def agreement(self) -> float | None:
        """Mean agreement over all items judged so far; None before the first."""
        return statistics.fmean(self._agreements) if self._agreements else None

    async def __call__(self, item: TrajectoryItem) -> Verdict:
        """Return the score with the reason and, if there are several, the votes."""
        ruling = await self.rule(item)
        reason = ruling.reason
        if self.votes > 1:
            votes = " ".join(f"{score:g}" for score in ruling.scores) or "none usable"
            reason = f"{reason} (votes: {votes})".strip()
        return Verdict(ruling.score, reason, ruling.cost)

    async def rule(self, item: TrajectoryItem) -> Ruling:
        """Return the result of the votes on an item.

        A vote without JSON of the right shape, even after asking again, does not count.

        Raises:
            CallbackError: the model raised.
        """
        return await self._rule(Attempt(item.state, item.action))

    @override
    async def rule_on(self, attempts: Sequence[Attempt]) -> list[Ruling]:
        return await map_bounded(attempts, self._rule, concurrency=max(1, len(attempts)))

    @override
    def calls_for(self, attempts: int) -> int:
        return self.votes * attempts

    async def _rule(self, attempt: Attempt) -> Ruling:
        asked: list[Message] = [{"role": "user", "content": self._question(attempt)}]
        cast = await map_bounded(
            range(self.votes), lambda index: self._vote(asked, index), concurrency=self.votes
        )
        # The others are texts that say what was wrong.
        votes = [vote for vote, _ in cast if isinstance(vote, Vote)]
        cost = sum(cost for _, cost in cast)
        if not votes:
            reason = f"the judge gave no usable score: {cast[0][0]}"
            return Ruling(None, reason, cost=cost, cause="unreadable")
        scores = [vote.score for vote in votes]
        median = statistics.median(scores)
        # From the vote nearest to the median, so that score and reason agree.
        reason = min(votes, key=lambda vote: abs(vote.score - median)).reason
        agreement = agreement_of(scores)
        if agreement is not None:
            self._agreements.append(agreement)
        return Ruling(median, reason, scores, agreement, cost)

    async def _vote(self, asked: Sequence[Message], index: int) -> tuple[Vote | str, float]:
        """Return a vote, or what was wrong with the answers, and the cost."""
        try:
            answer = await ask_for(sample_of(self._calls, index), asked, Vote)
        except UnfitAnswersError as error:
            return str(error), error.cost
        return answer.value, answer.cost

    def _question(self, attempt: Attempt) -> str:
        shown = shown_once([attempt])
        return QUESTION.format(rubric=self.rubric, state=shown.shared, action=shown.rest[0])


def agreement_of(scores: Sequence[float]) -> float | None:
    """Return 1 minus the mean difference between two of the scores; None for fewer than two."""
    if len(scores) < 2:
        return None
    return 1 - statistics.fmean(abs(a - b) for a, b in combinations(scores, 2))
