"""The state that both loops share: members, budget, journal, listeners."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orbiter.train.errors import DataError
from orbiter.train.evolution.budget import EvaluationBudget
from orbiter.train.evolution.config import EvolutionConfig, StopReason
from orbiter.train.evolution.event import Event, EventKind, EvolutionPhase, Listener
from orbiter.train.evolution.journal import RunJournal
from orbiter.train.evolution.member import Member, Origin, most_surely_best, noise, ranked
from orbiter.train.evolution.strategy import Context, EpochRecord, EvolutionStrategy, Score
from orbiter.train.identity import Codec, content_key, fallback_key

C = TypeVar("C")


@dataclass(slots=True)
class State(Generic[C]):
    """A run in progress."""

    config: EvolutionConfig
    strategy: EvolutionStrategy[C]
    budget: EvaluationBudget
    listeners: Sequence[Listener] = ()
    journal: RunJournal = field(default_factory=RunJournal)
    codec: Codec = field(default_factory=Codec)
    limiter: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Shared by evaluations that work on several tasks at once."""
    members: list[Member[C]] = field(default_factory=list)
    """All members ever made, in order of birth."""
    known: dict[str, Member[C]] = field(default_factory=dict)
    """The first member of each key."""
    by_name: dict[str, Member[C]] = field(default_factory=dict)
    best: Member[C] | None = None
    phase: EvolutionPhase = EvolutionPhase.INIT
    epoch: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    stop: StopReason | None = None
    stop_cause: str = ""
    """The error behind `stop`, if there is one."""
    cache_hits: int = 0
    failures: int = 0
    failed_in_a_row: int = 0
    """Evaluations that failed since the last success."""
    has_warned: bool = False
    holdout: str = ""
    """Digest of the function that scores on held-out data; empty without a function or a folder."""

    def emit(self, kind: EventKind, message: str = "", score: float | None = None) -> None:
        """Send an event to every listener."""
        if self.listeners:
            event = Event(kind, self.phase, self.epoch, message, score)
            for listener in self.listeners:
                listener.handle(event)

    def enter(self, phase: EvolutionPhase) -> None:
        """Begin another phase."""
        if phase is not self.phase:
            self.phase = phase
            self.emit("phase")

    def has_ended(self) -> bool:
        """Return whether the run has a reason to stop."""
        return self.stop is not None

    def end(self, reason: StopReason, cause: str = "") -> None:
        """End the run for this reason, unless it has one already."""
        if self.stop is None:
            # The first reason counts; later ones are its consequences.
            self.stop, self.stop_cause = reason, cause

    def count_outcome(self, error: str | None, *, at_once: int) -> None:
        """Count a scored or failed member; end the run after too many failures in a row.

        Args:
            error: why the evaluation failed; None if it did not.
            at_once: evaluations of this round; as many failures in a row, and three at least, end
                a run that has a best candidate.
        """
        self.failed_in_a_row = 0 if error is None else self.failed_in_a_row + 1
        # As long as nothing has succeeded, the epoch's own check reports the failure.
        if self.best is not None and self.failed_in_a_row >= max(3, at_once):
            self.end(
                StopReason.FAILURES,
                f"{self.failed_in_a_row} evaluations failed in a row; the last: {error}",
            )

    def identify(self, candidate: C) -> tuple[str, bytes | None]:
        """Return the candidate's key, which equal candidates share, and its JSON."""
        if candidate is None:
            raise DataError("a candidate is None: return or pass a candidate")
        written = self.codec.write(candidate)
        # The user's key decides, even if the content differs: it defines which candidates are
        # equal.
        own = self.strategy.key(candidate)
        if own is not None:
            return f"own:{own}", written
        if written is not None:
            return content_key(written), written
        if not self.has_warned:
            self.has_warned = True
            warnings.warn(
                f"candidates of type {type(candidate).__name__} cannot be encoded as JSON: "
                f"define `key` on the strategy, or a resumed run makes them anew",
                stacklevel=2,
            )
        return fallback_key(candidate, len(self.members)), None

    def add_member(
        self,
        candidate: C,
        key: str,
        *,
        origin: Origin,
        name: str = "",
        parents: tuple[int, ...] = (),
    ) -> Member[C]:
        """Register a candidate as a new member."""
        number = len(self.members)
        name = name or f"{origin} {number}"
        member = Member(number, candidate, key, name, origin, max(1, self.epoch), parents)
        self.members.append(member)
        self.by_name[name] = member
        # setdefault, because the first member of a key is the one that is evaluated.
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
        earlier: Score | None = None,
    ) -> Context:
        """Return the strategy's context for the call named by `key`."""
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
            earlier=earlier,
            limiter=self.limiter,
        )

    def update_best(self, contestants: Iterable[Member[C]]) -> None:
        """Update the best member of the run from the current best and the contestants."""
        scored = [member for member in contestants if member.error is None and member.scores]
        if not scored:
            return
        if self.config.contenders:
            # Under noise another member's new score can change the winner: look at all members.
            self.best = most_surely_best(
                [m for m in self.members if m.error is None and m.scores], noise(self.members)
            )
            return
        # The best so far takes part, so it can only be replaced by a better one.
        self.best = ranked(scored if self.best is None else [self.best, *scored])[0]

    def close_epoch(self, population: Sequence[Member[C]]) -> None:
        """Record a finished epoch, and end the run if it has reached its limit or its target."""
        scores = [member.score for member in population if member.error is None and member.scores]
        best = math.nan if self.best is None else self.best.score
        self.history.append(
            EpochRecord(
                epoch=self.epoch,
                best=best,
                mean=math.fsum(scores) / len(scores) if scores else None,
                median=_median(scores) if scores else None,
                unique=len({member.key for member in population}),
                evaluations=self.budget.evaluations,
                failures=self.failures,
                cost=self.budget.cost,
                seconds=self.budget.seconds,
            )
        )
        # Once an epoch is often enough: a killed process loses nothing without it.
        self.journal.sync_now_and_then()
        self.emit("epoch", score=best)
        if self.stop is None:
            self.stop = self._reached()

    def has_reached_target(self) -> bool:
        """Return whether the best score has reached `target`."""
        target, best = self.config.target, self.best
        return target is not None and best is not None and best.score >= target

    def _reached(self) -> StopReason | None:
        config = self.config
        if self.has_reached_target():
            return StopReason.TARGET
        if config.patience is not None and len(self.history) > config.patience:
            # The best before the last `patience` epochs.
            before = max(record.best for record in self.history[: -config.patience])
            if self.history[-1].best <= before + config.min_delta:
                return StopReason.PATIENCE
        return StopReason.EPOCHS if self.epoch >= config.epochs else None


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
