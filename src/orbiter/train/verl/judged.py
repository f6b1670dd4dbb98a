"""Judges as rewards: what they see of a sample, where their answers are kept, what they cost."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar, cast

from orbiter.train.agents.episode import Episode
from orbiter.train.judging.base import Attempt, Ruling

if TYPE_CHECKING:
    from orbiter.train.chat.message import Message
    from orbiter.train.judging.base import BaseJudge
    from orbiter.train.trajectory import TrajectoryItem

T = TypeVar("T")

FOLDER = "judges"
"""Folder of a run for the judges' answers."""


def attempt_of(output: str, given: Mapping[str, object]) -> Attempt:
    """Return an answer or an episode as a judge sees it."""
    item, episode = cast("TrajectoryItem", given["item"]), given.get("episode")
    messages = conversation_of(episode) if isinstance(episode, Episode) else ()
    return Attempt(item.state, output, messages)


def conversation_of(episode: Episode) -> list[Message]:
    """Return every message of an episode once, in order; sub-agents' ones where they came."""
    messages: list[Message] = []
    for turn in episode.turns:
        known = 0
        # A turn of the same conversation repeats all messages before it, so only the new ones are
        # taken.
        if turn.continues is not None:
            known = len(episode.turns[turn.continues].messages) + 1  # with the answer to them
        messages += [*turn.messages[known:], turn.reply]
    return messages


def grouped(values: Sequence[T], sizes: Sequence[int]) -> Iterator[Sequence[T]]:
    """Yield values in groups of these sizes, one after the other."""
    start = 0
    for size in sizes:
        yield values[start : start + size]
        start += size


def order_effect(groups: Iterable[Sequence[Ruling]]) -> float | None:
    """Return how much scores depend on the place where an attempt was shown, in [-1, 1].

    The correlation of place and score within the groups; an attempt's place is random, so it is
    near 0 for a judge that ignores it. None where it is undefined.
    """
    return correlation_within(
        [
            (number, ruling.place, ruling.score)
            for number, group in enumerate(groups)
            for ruling in group
            if ruling.place is not None and ruling.score is not None
        ]
    )


def correlation_within(rows: Iterable[tuple[int, float, float]]) -> float | None:
    """Return the correlation of two values within groups; None where it is undefined.

    Args:
        rows: The number of the group, and the two values.
    """
    by_group: dict[int, list[tuple[float, float]]] = {}
    for group, x, y in rows:
        by_group.setdefault(group, []).append((x, y))
    pairs: list[tuple[float, float]] = []
    for members in by_group.values():
        mean_x, mean_y = fmean(x for x, _ in members), fmean(y for _, y in members)
        # Centred by group: groups differ in their mean score, which says nothing of the place.
        pairs += [(x - mean_x, y - mean_y) for x, y in members]
    spread = math.fsum(x * x for x, _ in pairs) * math.fsum(y * y for _, y in pairs)
    return math.fsum(x * y for x, y in pairs) / math.sqrt(spread) if spread > 0 else None


@contextlib.asynccontextmanager
async def kept(judges: Mapping[str, BaseJudge], output_dir: object) -> AsyncIterator[None]:
    """Keep the answers of judges in a run's folder, if there is one, while the body runs."""
    try:
        if output_dir is not None:
            for name, judge in judges.items():
                judge.keep_in(answers_file(str(output_dir), name))
        yield
    finally:
        for judge in judges.values():
            judge.close()


def answers_file(output_dir: str | os.PathLike[str], reward: str) -> Path:
    """Return the file of a run for the answers of a judge; a reward's name may hold anything."""
    # Two names may become one here, which the digest of the whole name keeps apart.
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", reward)[:40]
    digest = hashlib.blake2b(reward.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return Path(output_dir) / FOLDER / f"{plain}-{digest}.sqlite"


def usage(judges: Mapping[str, BaseJudge]) -> dict[str, float]:
    """Return calls and cost of all judges since the run began, and answers from the files."""
    if not judges:
        return {}
    spent = [judge.spent for judge in judges.values()]
    return {
        "judge_calls": float(sum(each.calls for each in spent)),
        "judge_cached": float(sum(each.cached for each in spent)),
        "judge_cost": math.fsum(each.cost for each in spent),
    }
