"""The states of a trainer, and the one way from each to the next.

    CREATED ── validate ──> VALIDATING ──> VALIDATED
    VALIDATED ── train ───> TRAINING ────> TRAINED
    TRAINED ── evaluate ──> EVALUATING ──> COMPLETE          before training: back to where it was
    any exception ────────> ERROR ── reset ──> CREATED
    cancelled ────────────> back to where that work began

Left out: what the work is. `Trainer` says that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from enum import StrEnum

from orbiter.train.errors import CallbackError, StateError, boundary

OnStateChange = Callable[["TrainerState", "TrainerState"], object]
"""Told the old and the new state; plain, quick, and it must not raise."""

_INSIDE: ContextVar[tuple[object, ...]] = ContextVar("_INSIDE", default=())
"""The work, of whatever lifecycle, that the present task is part of."""


class TrainerState(StrEnum):
    """Where a trainer stands."""

    CREATED = "created"
    """Nothing has been done yet."""
    VALIDATING = "validating"
    """The four checks run."""
    VALIDATED = "validated"
    """All checks passed."""
    TRAINING = "training"
    """Training is in progress."""
    TRAINED = "trained"
    """Training has ended, and is not evaluated yet."""
    EVALUATING = "evaluating"
    """Evaluation is in progress."""
    COMPLETE = "complete"
    """Trained and evaluated."""
    ERROR = "error"
    """Something raised; `Trainer.error` holds it, and `reset()` is the way out."""


_BEFORE_TRAINING = (TrainerState.CREATED, TrainerState.VALIDATED)


class Lifecycle:
    """Keeps one trainer's state: one piece of work at a time, and a true state after each."""

    def __init__(self, tell: OnStateChange) -> None:
        """Begin in CREATED; `tell` hears of every change."""
        self.state = TrainerState.CREATED
        self.error: Exception | None = None
        self._tell = tell
        self._work: object | None = None

    def is_inside(self) -> bool:
        """Say whether the present task is part of the work in progress."""
        return self._work is not None and self._work in _INSIDE.get()

    def refuse_unless_idle(self, what: str) -> None:
        """Raise a `StateError` where `what` cannot begin now."""
        if self._work is not None:
            raise StateError(
                f"cannot {what} while {self.state}: a trainer does one thing at a time; "
                "await what it is doing, or cancel it"
            )
        if self.state is TrainerState.ERROR:
            raise StateError(
                f"cannot {what}: this trainer stopped with {self.error!r}; mend that, call "
                "reset(), and start again"
            )

    def validating(self) -> AbstractContextManager[None]:
        """Be VALIDATING inside the block, and VALIDATED after it."""
        return self._doing("validate", TrainerState.VALIDATING, TrainerState.VALIDATED)

    def training(self) -> AbstractContextManager[None]:
        """Be TRAINING inside the block, and TRAINED after it."""
        return self._doing("train", TrainerState.TRAINING, TrainerState.TRAINED)

    def evaluating(self) -> AbstractContextManager[None]:
        """Be EVALUATING inside the block; after it COMPLETE, or as found before any training."""
        done = self.state if self.state in _BEFORE_TRAINING else TrainerState.COMPLETE
        return self._doing("evaluate", TrainerState.EVALUATING, done)

    def reset(self) -> None:
        """Go back to CREATED from any state at rest, ERROR included, and forget the error."""
        if self._work is not None:
            raise StateError(f"cannot reset while {self.state}: await the work, or cancel it")
        self.error = None
        self._move(TrainerState.CREATED)

    @contextmanager
    def _doing(self, what: str, state: TrainerState, done: TrainerState) -> Iterator[None]:
        self.refuse_unless_idle(what)
        found, outside = self.state, _INSIDE.get()
        self._work = object()
        _INSIDE.set((*outside, self._work))
        try:
            self._move(state)
            yield
            self._move(done)
        except Exception as error:
            self.error = error
            self._end(TrainerState.ERROR, error)
            raise
        except BaseException as stopped:  # cancelled, or Ctrl-C: nothing is wrong with the trainer
            self._end(found, stopped)
            raise
        finally:
            self._work = None
            _INSIDE.set(outside)

    def _move(self, state: TrainerState) -> None:
        old, self.state = self.state, state
        if old is not state:
            with boundary("on_state_change"):
                self._tell(old, state)

    def _end(self, state: TrainerState, reason: BaseException) -> None:
        """Move without letting a hook that fails hide the reason."""
        try:
            self._move(state)
        except CallbackError as hook:
            reason.add_note(str(hook))
