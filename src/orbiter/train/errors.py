"""The exceptions of this package, and helpers that raise them with clear messages.

    TrainError
    ├── ConfigError        (ValueError)    a setting with an invalid value
    ├── DataError          (ValueError)    an invalid item, file or dataset
    ├── StateError         (RuntimeError)  a call that the lifecycle does not allow now
    ├── CallbackError      (RuntimeError)  user code raised, or returned an unusable value
    ├── TrainingError      (RuntimeError)  a run that cannot learn, or that diverged
    ├── StorageError       (OSError)       a journal, a checkpoint, a model or a lock on disk
    └── MissingExtraError  (ImportError)   an optional dependency that is not installed

Each class also derives from a built-in exception, so `except ValueError` works as expected. There
is deliberately no class per message; the message says what happened.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


class TrainError(Exception):
    """The base class of every error that this package raises on purpose."""


class ConfigError(TrainError, ValueError):
    """A setting with an invalid value; the message names the field and the value."""


class DataError(TrainError, ValueError):
    """An invalid item, file or dataset; the message says where and what is wrong."""


class StateError(TrainError, RuntimeError):
    """A call that is not allowed in the present state; says which state, and what to do."""


class CallbackError(TrainError, RuntimeError):
    """User code (reward, strategy, check) raised, or returned something unusable."""


class TrainingError(TrainError, RuntimeError):
    """A run that cannot learn, or whose loss or weights are no longer finite."""


class StorageError(TrainError, OSError):
    """Something on disk that is missing, damaged, locked or full; the message names the path."""


class MissingExtraError(TrainError, ImportError):
    """An optional dependency is not installed; the message is the command that installs it."""


class boundary:  # noqa: N801 - it reads as what it does, like contextlib's own
    """Run user code: an exception from it is raised as a `CallbackError` that names `what`.

    Errors of this package pass through unchanged, and so do cancellation and Ctrl-C, which are not
    errors. The original exception is kept as `__cause__`.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Enter the user's code."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Leave the user's code; wrap an exception from it."""
        if isinstance(error, Exception) and not isinstance(error, TrainError):
            raise CallbackError(f"{self._what} raised {described(error)}") from error


def described(error: BaseException) -> str:
    """Return the type and the text of an exception; the type alone if it cannot write its text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the `__str__` of a user's exception may raise too
        return type(error).__name__


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or raise an error that names the extra to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # installed but broken: its own error is the useful one
        raise MissingExtraError(
            f"{module!r} is not installed; run: pip install 'orbiter-train[{extra}]'"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the most similar known name, or "" if none is similar."""
    from difflib import get_close_matches  # takes 10 ms, so it is imported only after a mistake

    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
