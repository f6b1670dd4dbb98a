"""The settings of learning from preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orbiter.train.checks import Number, OneOf, OrNone, WholeNumber, setting
from orbiter.train.engine.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig(EngineConfig):
    """How pairs of a better and a worse answer are made from a data set."""

    compare: Literal["episode", "answer"] = setting(
        "episode",
        "What a pair consists of: whole episodes (the items of an episode_id; items without one "
        "are single answers), or the single answers of all items.",
        OneOf(("episode", "answer")),
    )
    min_margin: float = setting(
        0.0,
        "Smallest difference of the two rewards of a pair; even at 0 they must differ.",
        Number(at_least=0),
    )
    pairs_per_task: int | None = setting(
        None,
        "Most pairs of a task, those with the widest difference of rewards first; none uses each "
        "attempt once: the best with the worst, the second best with the second worst, and so on.",
        OrNone(WholeNumber(at_least=1)),
    )
