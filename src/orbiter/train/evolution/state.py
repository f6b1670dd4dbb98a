"""What both loops share: the family, the budget, the journal, and how to tell of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orbiter.train.evolution.budget import Budget
from orbiter.train.evolution.config import EvolutionConfig, EvolutionPhase, StopReason
from orbiter.train.evolution.event import Event, EventKind, Listener
from orbiter.train.evolution.identity import Codec, content_key, fallback_key
from orbiter.train.evolution.journal import Journal
from orbiter.train.evolution.member import Member, Origin, most_surely_best, noise, ranked
from orbiter.train.evolution.result import EpochRecord
from orbiter.train.evolution.strategy import Context, EvolutionStrategy, Score

C = TypeVar("C")


@dataclass(slots=True)
class State(Generic[C]):
    """A run under way."""

    config: EvolutionConfig
    strategy: EvolutionStrategy[C]
    budget: Budget
    listeners: Sequence[Listener] = ()
    journal: Journal = field(default_factory=Journal)
    codec: Codec = field(default_factory=Codec)
    members: list[Member[C]] = field(default_factory=list)
    """Everybody ever born, in order of birth."""
    known: dict[str, Member[C]] = field(default_factory=dict)
    """The first member of each key."""
    by_name: dict[str, Member[C]] = field(default_factory=dict)
    best: Member[C] | None = None
    phase: EvolutionPhase = EvolutionPhase.INIT
    epoch: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    stop: StopReason | None = None
    cache_hits: int = 0
    failures: int = 0
    said_no_content: bool = False

    def tell(self, kind: EventKind, message: str = "", score: float | None = None) -> None:
        """Let every listener hear of something."""
        if self.listeners:
            event = Event(kind, self.phase, self.epoch, message, score)
            for listener in self.listeners:
                listener.hear(event)

    def enter(self, phase: EvolutionPhase) -> None:
        """Move on to another phase."""
        if phase is not self.phase:
            self.phase = phase
            self.tell("phase")

    def identify(self, candidate: C) -> tuple[str, bytes | None]:
        """Return what makes the candidate equal to others, and how it is written down."""
        written = self.codec.write(candidate)
        own = self.strategy.key(candidate)
        if own is not None:
            return f"own:{own}", written
        if written is not None:
            return content_key(written), written
        if not self.said_no_content:
            self.said_no_content = True
            warnings.warn(
                f"candidates of type {type(candidate).__name__} have no content that can be "
                "written down: define `key` on the strategy, or a resumed run makes them anew",
                stacklevel=2,
            )
        return fallback_key(candidate, len(self.members)), None

    def admit(
        self,
        candidate: C,
        key: str,
        *,
        origin: Origin,
        name: str = "",
        parents: tuple[int, ...] = (),
    ) -> Member[C]:
        """Give a candidate its place in the family."""
        number = len(self.members)
        name = name or f"{origin} {number}"
        member = Member(number, candidate, key, name, origin, max(1, self.epoch), parents)
        self.members.append(member)
        self.by_name[name] = member
        self.known.setdefault(key, member)
        return member

    def context(
        self,
        *key: str | int,
        child: str = "",
        replicate: int = 0,
        parent: Member[C] | None = None,
        scores: Sequence[Score] = (),
        places: int = 0,
    ) -> Context:
        """Return what the strategy is told about the call named by `key`."""
        return Context(
            rate=self.config.mutation_rate,
            seed=self.config.seed,
            key=key,
            epoch=self.epoch,
            history=self.history,
            child=child,
            replicate=replicate,
            parent_score=parent.scores[0] if parent and parent.scores else None,
            scores=scores,
            places=places,
        )

    def crown(self, contestants: Iterable[Member[C]]) -> None:
        """Make the best of the crowned one and the contestants the best of the run."""
        scored = [member for member in contestants if member.error is None and member.scores]
        if not scored:
            return
        if self.config.contenders:
            self.best = most_surely_best(
                [m for m in self.members if m.error is None and m.scores], noise(self.members)
            )
            return
        self.best = ranked(scored if self.best is None else [self.best, *scored])[0]

    def close_epoch(self, population: Sequence[Member[C]]) -> None:
        """Record a finished epoch, and see whether the run has reached what it was made for."""
        scores = [member.score for member in population if member.error is None and member.scores]
        assert self.best is not None
        self.history.append(
            EpochRecord(
                epoch=self.epoch,
                best=self.best.score,
                mean=math.fsum(scores) / len(scores) if scores else None,
                median=_median(scores) if scores else None,
                unique=len({member.key for member in population}),
                evaluations=self.budget.evaluations,
                failures=self.failures,
                cost=self.budget.cost,
                seconds=self.budget.seconds,
            )
        )
        self.journal.sync_now_and_then()
        self.tell("epoch", score=self.best.score)
        if self.stop is None:
            self.stop = self._reached()

    def has_reached_target(self) -> bool:
        """Say whether the best score is as good as was asked for."""
        target, best = self.config.target, self.best
        return target is not None and best is not None and best.score >= target

    def _reached(self) -> StopReason | None:
        config = self.config
        if self.has_reached_target():
            return StopReason.TARGET
        if config.patience is not None and len(self.history) > config.patience:
            before = max(record.best for record in self.history[: -config.patience])
            if self.history[-1].best <= before + config.min_delta:
                return StopReason.PATIENCE
        return StopReason.EPOCHS if self.epoch >= config.epochs else None


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
