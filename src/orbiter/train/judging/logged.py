"""Give captured episodes the scores of a judge as their rewards, to learn from or to filter by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orbiter.train.callback import map_bounded
from orbiter.train.chat.conversation import answer_of, prompt_of
from orbiter.train.errors import DataError
from orbiter.train.judging.base import Attempt, BaseJudge, Ruling
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from orbiter.train.chat.message import Message


async def judge_episodes(
    judge: BaseJudge, items: Iterable[TrajectoryItem], *, concurrency: int = 16
) -> list[TrajectoryItem]:
    """Return the items with the judge's score as the reward of each episode's last step.

    The items of an episode share an `episode_id`, those without one are episodes by themselves; the
    attempts at a task share a `task_id`, and a `GroupJudge` compares them. That is what
    `OfflineTrainer` reads. An episode without a readable verdict gets no reward, so it is not
    learned from; `metadata["judge_cause"]` says why. The other steps keep no reward either.

    Args:
        judge: A `Judge` or a `GroupJudge`.
        items: Captured items, the steps of an episode in order.
        concurrency: Most tasks asked about at once.

    Raises:
        DataError: there are no items.
        CallbackError: the judge's model raised.
        BudgetError: the judge reached a limit of its calls.
    """
    given = list(items)
    if not given:
        raise DataError("there are no items to judge")
    episodes: dict[str, list[int]] = {}
    for index, item in enumerate(given):
        episodes.setdefault(item.episode_id or f"item {index}", []).append(index)
    groups: dict[str, list[list[int]]] = {}
    for name, places in episodes.items():
        first = given[places[0]]
        key = first.task_id or (first.state if judge.relative else name)
        groups.setdefault(key, []).append(places)

    async def ask(group: Sequence[Sequence[int]]) -> list[Ruling]:
        return await judge.rule_on([_attempt([given[p] for p in places]) for places in group])

    chosen = list(groups.values())
    rulings = await map_bounded(chosen, ask, concurrency=concurrency)
    judged = [replace(item, reward=None) for item in given]
    for group, ruled in zip(chosen, rulings, strict=True):
        for places, ruling in zip(group, ruled, strict=True):
            last = judged[places[-1]]
            notes = {"judge_reason": ruling.reason, "judge_cause": ruling.cause}
            metadata = {**last.metadata, **{k: v for k, v in notes.items() if v}}
            judged[places[-1]] = replace(last, reward=ruling.score, metadata=metadata)
    return judged


def _attempt(steps: Sequence[TrajectoryItem]) -> Attempt:
    """Return an episode as a judge sees it: its messages once each, or one answer."""
    if len(steps) == 1:
        return Attempt(steps[0].state, steps[0].action)
    messages: list[Message] = []
    for step in steps:
        prompt = prompt_of(step)
        # A step that does not continue the one before is shown whole.
        known = len(messages) if prompt[: len(messages)] == messages else 0
        messages += [*prompt[known:], answer_of(step)]
    return Attempt(steps[0].state, "", messages)
