"""The states of a trainer, and the transitions between them.

    CREATED ── validate ──> VALIDATING ──> VALIDATED
    VALIDATED ── train ───> TRAINING ────> TRAINED
    TRAINED ── evaluate ──> EVALUATING ──> COMPLETE          before training: back to the old state
    any exception ────────> ERROR ── reset ──> CREATED
    cancelled ────────────> back to the state in which that work began

The work itself is defined in `Trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from enum import StrEnum

from orbiter.train.errors import CallbackError, StateError, boundary

OnStateChange = Callable[["TrainerState", "TrainerState"], object]
"""Called with the old and the new state; not async, fast, and it must not raise."""

_INSIDE: ContextVar[tuple[object, ...]] = ContextVar("_INSIDE", default=())
"""The work, of any trainer, that the current task is part of."""


class TrainerState(StrEnum):
    """The state of a trainer."""

    CREATED = "created"
    """Nothing has been done yet."""
    VALIDATING = "validating"
    """The four checks are running."""
    VALIDATED = "validated"
    """All checks passed."""
    TRAINING = "training"
    """Training is in progress."""
    TRAINED = "trained"
    """Training has ended; no evaluation has followed yet."""
    EVALUATING = "evaluating"
    """Evaluation is in progress."""
    COMPLETE = "complete"
    """Trained and evaluated."""
    ERROR = "error"
    """An exception was raised; `Trainer.error` holds it, and `reset()` leaves this state."""


_BEFORE_TRAINING = (TrainerState.CREATED, TrainerState.VALIDATED)


class Lifecycle:
    """Tracks one trainer's state and allows one piece of work at a time."""

    def __init__(self, notify: OnStateChange) -> None:
        """Begin in CREATED; `notify` is called at every change."""
        self.state = TrainerState.CREATED
        self.error: Exception | None = None
        self._notify = notify
        self._work: object | None = None

    def is_inside(self) -> bool:
        """Return whether the current task is part of the work in progress."""
        return self._work is not None and self._work in _INSIDE.get()

    def refuse_unless_idle(self, what: str) -> None:
        """Raise a `StateError` if `what` cannot begin now."""
        if self._work is not None:
            raise StateError(
                f"cannot {what} while {self.state}: a trainer does one thing at a time; "
                "await what it is doing, or cancel it"
            )
        if self.state is TrainerState.ERROR:
            raise StateError(
                f"cannot {what}: this trainer stopped with {self.error!r}; fix that, call "
                "reset(), and start again"
            )

    def validating(self) -> AbstractContextManager[None]:
        """Be VALIDATING inside the block, and VALIDATED after it."""
        return self._doing("validate", TrainerState.VALIDATING, TrainerState.VALIDATED)

    def training(self) -> AbstractContextManager[None]:
        """Be TRAINING inside the block, and TRAINED after it."""
        return self._doing("train", TrainerState.TRAINING, TrainerState.TRAINED)

    def evaluating(self) -> AbstractContextManager[None]:
        """Be EVALUATING inside the block, and COMPLETE after it; before training, as it was."""
        # An evaluation of the untrained model must not count as the end of a training.
        done = self.state if self.state in _BEFORE_TRAINING else TrainerState.COMPLETE
        return self._doing("evaluate", TrainerState.EVALUATING, done)

    def reset(self) -> None:
        """Return to CREATED from any idle state, including ERROR, and clear the error."""
        if self._work is not None:
            raise StateError(f"cannot reset while {self.state}: await the work, or cancel it")
        self.error = None
        self._move(TrainerState.CREATED)

    @contextmanager
    def _doing(self, what: str, state: TrainerState, done: TrainerState) -> Iterator[None]:
        self.refuse_unless_idle(what)
        # A context variable follows the tasks that the work starts, which a flag on the trainer
        # could not.
        earlier, outside = self.state, _INSIDE.get()
        self._work = object()
        # A tuple, because the work of one trainer may run another trainer.
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
            self._end(earlier, stopped)
            raise
        finally:
            self._work = None
            _INSIDE.set(outside)

    def _move(self, state: TrainerState) -> None:
        old, self.state = self.state, state
        if old is not state:
            with boundary("on_state_change"):
                self._notify(old, state)

    def _end(self, state: TrainerState, reason: BaseException) -> None:
        """Change the state; if the hook fails, attach its error to `reason` as a note."""
        try:
            self._move(state)
        except CallbackError as hook:
            reason.add_note(str(hook))
