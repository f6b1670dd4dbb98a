"""One step of an agent: the record that everything else speaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orbiter.train.errors import DataError


@dataclass(frozen=True, slots=True)
class TrajectoryItem:
    """One step an agent took: what it saw, what it did, what that was worth."""

    state: str
    action: str
    reward: float | None = None
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    task_id: str | None = field(default=None, kw_only=True)
    episode_id: str | None = field(default=None, kw_only=True)
    step: int | None = field(default=None, kw_only=True)
    agent: str | None = field(default=None, kw_only=True)
    messages: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    tools: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    tool_calls: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    done: bool | None = field(default=None, kw_only=True)
    timestamp: float | None = field(default=None, kw_only=True)
    prompt_token_ids: Sequence[int] | None = field(default=None, kw_only=True)
    token_ids: Sequence[int] | None = field(default=None, kw_only=True)
    logprobs: Sequence[float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.reward is not None and not math.isfinite(self.reward):
            raise DataError(f"reward must be finite, got {self.reward} ({self.action[:40]!r})")
