"""What can go wrong, as one small tree; and the two doors through which foreign errors come.

    TrainError
    ├── ConfigError        (ValueError)    a setting that cannot mean anything
    ├── DataError          (ValueError)    an item, a file or a data set that is not right
    ├── StateError         (RuntimeError)  a call that the lifecycle does not allow now
    ├── CallbackError      (RuntimeError)  the user's own code raised, or answered with nonsense
    ├── TrainingError      (RuntimeError)  a run that cannot learn, or that diverged
    ├── StorageError       (OSError)       a journal, a checkpoint, a model or a lock on disk
    └── MissingExtraError  (ImportError)   an optional dependency that is not installed

Every child is also the standard library's kin, so `except ValueError` works as a stranger would
expect. Left out on purpose: a class per message; the message says what happened.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


class TrainError(Exception):
    """The root of every error that this package raises on purpose."""


class ConfigError(TrainError, ValueError):
    """A setting whose value cannot mean anything; the message names the field and the value."""


class DataError(TrainError, ValueError):
    """An item, a file or a data set that is not what it should be; says where and what."""


class StateError(TrainError, RuntimeError):
    """A call that is not allowed in the present state; says which state, and the way out."""


class CallbackError(TrainError, RuntimeError):
    """The user's own code (reward, strategy, check) raised or answered with something unusable."""


class TrainingError(TrainError, RuntimeError):
    """A run that cannot learn, or whose loss or weights are no longer finite."""


class StorageError(TrainError, OSError):
    """Something on disk that is missing, damaged, locked or full; the message names the path."""


class MissingExtraError(TrainError, ImportError):
    """An optional dependency is not installed; the message is the command that installs it."""


class boundary:  # noqa: N801 - it reads as what it does, like contextlib's own
    """Run the user's own code: an error from it comes out as a `CallbackError` that names `what`.

    Errors of this package pass through unchanged, and so do cancellation and Ctrl-C, which are no
    errors. The original stands behind as `__cause__`.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Enter the user's code."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Leave it, the error named."""
        if isinstance(error, Exception) and not isinstance(error, TrainError):
            raise CallbackError(f"{self._what} raised {type(error).__name__}: {error}") from error


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # installed, but broken inside: its own story is the useful one
        raise MissingExtraError(
            f"{module!r} is not installed; run: pip install 'orbiter-train[{extra}]'"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known name, or "" when none is near."""
    from difflib import get_close_matches  # 10 ms that only a mistake is worth

    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
