"""Phases and events of a run, for the user's `on_event` and for the progress line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from orbiter.train.errors import boundary
from orbiter.train.progress import make_progress


class EvolutionPhase(StrEnum):
    """The current phase of a pipeline."""

    INIT = "init"
    """Created, not started."""
    EVALUATING = "evaluating"
    """Scoring the new candidates."""
    SELECTING = "selecting"
    """Choosing the survivors."""
    MUTATING = "mutating"
    """Making variants to fill the population."""
    COMPLETE = "complete"
    """Ended, for whatever reason."""


EventKind = Literal["phase", "evaluated", "failed", "epoch", "warning", "stop"]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a run; `on_event` gets them in order."""

    kind: EventKind
    phase: EvolutionPhase
    epoch: int
    message: str = ""
    """Text of a warning, a failure or the end."""
    score: float | None = None
    """The score of an evaluation, or the best score at the end of an epoch."""


class Listener(Protocol):
    """Receives the events of a run."""

    def handle(self, event: Event) -> None:
        """Receive an event."""

    def close(self) -> None:
        """Release resources; no further event follows."""


class Caller:
    """Passes events to the user's `on_event`."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event

    def handle(self, event: Event) -> None:
        """Call the user's function; an error in it ends the run, named."""
        with boundary("on_event"):
            self._on_event(event)

    def close(self) -> None:
        """Nothing to close."""


class ProgressListener:
    """Shows progress: a bar on a terminal, else a line an epoch in the log."""

    def __init__(self, epochs: int) -> None:
        self._progress = make_progress("evolving", epochs)
        self._progress.__enter__()

    def handle(self, event: Event) -> None:
        """Advance at the end of an epoch."""
        if event.kind == "epoch" and event.score is not None:
            self._progress.update(event.epoch, f"best {event.score:.4g}")

    def close(self) -> None:
        """Restore the terminal."""
        self._progress.__exit__(None, None, None)


def listeners(on_event: Callable[[Event], None] | None, epochs: int) -> list[Listener]:
    """Return the listeners of a run: the user's function, and its progress."""
    callers: list[Listener] = [Caller(on_event)] if on_event else []
    return [*callers, ProgressListener(epochs)]
