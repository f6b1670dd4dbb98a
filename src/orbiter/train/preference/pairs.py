"""Chooses pairs of a better and a worse attempt from a data set.

An attempt is a single answer, or a whole episode. Attempts are siblings if they are at the same
task: episodes that share a `task_id`, or else attempts whose first prompts are equal.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from orbiter.train.agents.logged import FAILED, by_episode
from orbiter.train.chat.conversation import answer_of
from orbiter.train.engine.tasks import as_items
from orbiter.train.errors import DataError
from orbiter.train.formats.preference import Pair, state_key, stated_pairs, widest_first
from orbiter.train.trajectory import TrajectoryItem

log = logging.getLogger(__name__)

LABEL = "label"
"""The metadata entry that says whether an answer without a reward is good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a task: a single answer, or an episode."""

    items: Sequence[TrajectoryItem]
    """Its items in the order of their steps."""
    reward: float | None
    """The reward of its last item, or 1 or 0 by its label; None if neither is known."""

    @property
    def first(self) -> TrajectoryItem:
        """The item that the attempt begins with."""
        return self.items[0]

    @property
    def is_empty(self) -> bool:
        """Whether it has neither text nor tool calls."""
        return not any(item.action or item.tool_calls for item in self.items)


class PreferencePair(NamedTuple):
    """Two attempts at the same task."""

    chosen: Attempt
    """The better one."""
    rejected: Attempt
    task: int
    """The number of the task, from 0; pairs of the same task are not independent."""

    @property
    def sides(self) -> tuple[Attempt, Attempt]:
        """The two attempts, the better one first."""
        return self.chosen, self.rejected

    @property
    def margin(self) -> float:
        """The reward of the chosen attempt minus that of the rejected one; 0 if not known."""
        if self.chosen.reward is None or self.rejected.reward is None:
            return 0.0
        return self.chosen.reward - self.rejected.reward


Sides = tuple[Attempt, Attempt]
"""A better and a worse attempt."""


class PreferencePairs(NamedTuple):
    """The pairs of a data set, and what is in none of them."""

    pairs: list[PreferencePair]
    left_out: Mapping[str, int]
    """Counts by reason."""


def make_pairs(
    dataset: object,
    *,
    whole_episodes: bool = True,
    min_margin: float = 0.0,
    per_task: int | None = None,
) -> PreferencePairs:
    """Return the pairs of a data set in the order of their tasks.

    Args:
        dataset: Items, or a list of pairs of items as `formats.preference.preference_pairs` yields
            them, which are taken as they are.
        whole_episodes: Whether the items of an episode are one attempt; otherwise each is.
        min_margin: The smallest difference of two rewards; even at 0 they must differ.
        per_task: The most pairs of a task, those with the widest difference first; None uses each
            attempt once: the best with the worst, the second best with the second worst, and so on.
            Attempts with rewards 1 and 0 in turn, as preference files without scores are read, are
            paired as they follow each other.

    Raises:
        DataError: there is no pair; says why. Or a given pair has its sides swapped.
    """
    left_out: Counter[str] = Counter()
    if (given := given_pairs(dataset)) is not None:
        pairs = list(_given(given, left_out))
    else:
        attempts = read_attempts(as_items(dataset), whole_episodes=whole_episodes)
        usable = list(rewarded(attempts, left_out))
        pairs = []
        for task, group in enumerate(by_task(usable, whole_episodes=whole_episodes)):
            chosen = _of_group(group, min_margin, per_task, left_out)
            pairs += [PreferencePair(*sides, task) for sides in chosen]
    if not pairs:
        raise DataError(
            f"the data set has no pair of a better and a worse answer: {_why(left_out)}"
        )
    if left_out:
        log.warning("%d pairs; in none of them: %s", len(pairs), listed(left_out))
    _warn_of_prompts(pairs)
    return PreferencePairs(pairs, dict(left_out))


def given_pairs(dataset: object) -> list[Pair] | None:
    """Return the pairs that a data set consists of; None if it consists of items."""
    # An iterator is not looked into: its first entry could not be put back.
    if not isinstance(dataset, Sequence) or isinstance(dataset, str) or not dataset:
        return None
    return list(dataset) if all(isinstance(entry, Pair) for entry in dataset) else None


def read_attempts(items: Sequence[TrajectoryItem], *, whole_episodes: bool) -> list[Attempt]:
    """Return the attempts in the order of their first items."""
    groups = by_episode(items) if whole_episodes else [[index] for index in range(len(items))]
    return [_attempt([items[index] for index in places]) for places in groups]


def _attempt(items: Sequence[TrajectoryItem]) -> Attempt:
    last = items[-1]
    label = last.metadata.get(LABEL)
    # Only true and false are labels; another value is the caller's own data.
    labelled = float(label) if isinstance(label, bool) else None
    return Attempt(items=items, reward=labelled if last.reward is None else last.reward)


def _given(entries: Sequence[Pair], left_out: Counter[str]) -> Iterator[PreferencePair]:
    """Yield pairs that the caller has made."""
    tasks: dict[bytes, int] = {}
    for index, (chosen, rejected) in enumerate(entries):
        key = state_key(chosen)
        # Pairs with the same prompt belong to one task for the intervals.
        task = tasks.setdefault(key, len(tasks))
        pair = PreferencePair(_attempt([chosen]), _attempt([rejected]), task)
        if pair.margin < 0:
            raise DataError(
                f"pair {index} has its sides swapped: the chosen answer has reward "
                f"{pair.chosen.reward:g}, the rejected one {pair.rejected.reward:g}"
            )
        if key != state_key(rejected):
            raise DataError(
                f"the two answers of pair {index} are to different prompts ({chosen.state[:60]!r} "
                f"and {rejected.state[:60]!r}); a pair needs two answers to one prompt"
            )
        if (reason := _unfit(pair.sides)) is None:
            yield pair
        else:
            left_out[reason] += 1


def rewarded(attempts: Sequence[Attempt], left_out: Counter[str]) -> Iterator[Attempt]:
    """Yield the attempts that can be compared."""
    for attempt in attempts:
        if any(FAILED in item.metadata for item in attempt.items):
            left_out[FAILED_NAME] += 1
        elif attempt.reward is None:
            left_out[UNREWARDED] += 1
        else:
            yield attempt


def by_task(attempts: Sequence[Attempt], *, whole_episodes: bool) -> list[list[Attempt]]:
    """Return the attempts at each task, in the order of their first attempts."""
    groups: dict[object, list[Attempt]] = {}
    for attempt in attempts:
        first = attempt.first
        # Single answers are compared only if their prompts are equal, whatever their task_id.
        # Episodes of a task may begin with different prompts, for instance with the date in them.
        by_id = whole_episodes and first.episode_id is not None and first.task_id is not None
        key = first.task_id if by_id else state_key(first)
        groups.setdefault(key, []).append(attempt)
    return list(groups.values())


def _of_group(
    group: list[Attempt], margin: float, per_task: int | None, left_out: Counter[str]
) -> list[Sides]:
    """Return the pairs of one task's attempts."""
    if len(group) == 1:
        left_out[ALONE] += 1
        return []
    # Equal rewards say nothing about which answer is better.
    if len({attempt.reward for attempt in group}) == 1:
        left_out[TIED] += 1
        return []
    differing = _differing(group, margin, per_task)
    if not differing:
        left_out[CLOSE] += 1
    kept = []
    # Checked after the choice, so that a pair that cannot be used does not hide others.
    for pair in differing:
        if (reason := _unfit(pair)) is None:
            kept.append(pair)
        elif per_task is None or len(kept) < per_task:
            left_out[reason] += 1
    return list(islice(kept, per_task))


def _differing(group: list[Attempt], margin: float, per_task: int | None) -> list[Sides]:
    """Return the pairs whose rewards differ enough, whether or not they can be learned from."""
    stated = stated_pairs(group, _reward)
    if stated is not None:
        return [pair for pair in stated if margin <= 1]
    if per_task is not None:
        return list(widest_first(group, _reward, margin=margin))
    best = sorted(group, key=_reward, reverse=True)
    half = len(best) // 2
    # From both ends towards the middle; the middle one of an odd number faces nobody.
    facing: list[Sides] = [(best[index], best[-1 - index]) for index in range(half)]
    gaps = [_reward(better) - _reward(worse) for better, worse in facing]
    # Rewards must differ even with a margin of 0.
    return [p for p, gap in zip(facing, gaps, strict=True) if gap > 0 and gap >= margin]


def _unfit(sides: Sides) -> str | None:
    """Return why a pair cannot be learned from; None if it can."""
    if sides[0].is_empty:
        return EMPTY
    # Prompts too: equal answers after different tool results are different episodes.
    answers = [[answer_of(item) for item in side.items] for side in sides]
    prompts = [[state_key(item) for item in side.items] for side in sides]
    return IDENTICAL if answers[0] == answers[1] and prompts[0] == prompts[1] else None


def _reward(attempt: Attempt) -> float:
    return attempt.reward or 0.0


def _warn_of_prompts(pairs: Sequence[PreferencePair]) -> None:
    """Warn of pairs whose episodes share a task but not the prompt that they begin with."""
    differ = sum(state_key(pair.chosen.first) != state_key(pair.rejected.first) for pair in pairs)
    if differ:
        log.warning(
            "in %d of %d pairs the two episodes begin with different prompts although they share "
            "a task_id; their likelihoods are then less comparable",
            *(differ, len(pairs)),
        )


def listed(left_out: Mapping[str, int]) -> str:
    """Return counts by reason as text."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def _why(left_out: Mapping[str, int]) -> str:
    """Return what there is instead of pairs, and what to do."""
    most = max(left_out, key=lambda reason: left_out[reason])
    return f"{listed(left_out)}; {_REMEDIES[most]}"


FAILED_NAME = "failed episodes"
UNREWARDED = "attempts without a reward or label"
ALONE = "tasks with a single attempt"
TIED = "tasks whose attempts all have the same reward"
CLOSE = "tasks whose rewards differ by less than min_margin"
EMPTY = "pairs whose better answer is empty"
IDENTICAL = "pairs of identical answers"
_REMEDIES: Mapping[str, str] = {
    FAILED_NAME: "an error of the agent says nothing about the model, so they are not compared",
    UNREWARDED: "score the answers first, or label each with metadata label=true or false",
    ALONE: "sample several answers to each state, or several episodes of each task_id",
    TIED: "a reward that distinguishes the answers is needed",
    CLOSE: "lower min_margin",
    EMPTY: "check which column holds the answers",
    IDENTICAL: "sample at a higher temperature",
}
