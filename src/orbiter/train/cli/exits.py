"""Exit codes, which never change their meaning, and the one-line error message."""

from __future__ import annotations

import codecs
import errno
import json
import os
import sys
from enum import IntEnum
from pathlib import Path
from typing import TypeGuard

from orbiter.train.disk import FULL, explain
from orbiter.train.errors import (
    CallbackError,
    ConfigError,
    DataError,
    MissingExtraError,
    StateError,
    StorageError,
    TrainError,
    TrainingError,
)
from orbiter.train.redact import mask_text, secrets_of_the_environment


class ExitCode(IntEnum):
    """The exit codes of the commands."""

    OK = 0
    """Success."""
    UNEXPECTED = 1
    """A bug in this package or in one that it uses."""
    USAGE = 2
    """The command line or a setting is wrong."""
    DATA = 3
    """An item, a file or a dataset is invalid."""
    CALLBACK = 4
    """Your own code (a reward, a strategy, a step) or the language model that was asked failed."""
    TRAINING = 5
    """The run could not learn, or it diverged."""
    STORAGE = 6
    """A file, a model or a lock: missing, damaged, held, or the disk is full."""
    MISSING = 7
    """A required package is not installed."""
    STATE = 8
    """The call is not allowed in the current state."""
    NOT_MET = 9
    """`compare`: a requirement is not met."""
    UNDECIDED = 10
    """`compare`: the items do not decide a requirement; more items may."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C."""
    TERMINATED = 143
    """Stopped by SIGTERM."""


_CODES: tuple[tuple[type[TrainError], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (DataError, ExitCode.DATA),
    (CallbackError, ExitCode.CALLBACK),
    (TrainingError, ExitCode.TRAINING),
    (StorageError, ExitCode.STORAGE),
    (MissingExtraError, ExitCode.MISSING),
    (StateError, ExitCode.STATE),
)


def code_of(error: BaseException) -> ExitCode:
    """Return the exit code of a command that failed with this error."""
    if _is_about_a_file(error) or _is_about_a_file_name(error):
        return ExitCode.STORAGE
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.UNEXPECTED)


def _is_about_a_file(error: BaseException) -> bool:
    """Return whether the system refused a file: missing, not allowed, read-only, disk full."""
    if not isinstance(error, OSError) or isinstance(error, TrainError):
        return False
    # Other OSErrors, such as a refused connection, are not about a file.
    return error.filename is not None or error.errno in (*FULL, errno.EROFS, errno.EIO)


def _is_about_a_file_name(error: BaseException) -> TypeGuard[UnicodeEncodeError]:
    """Return whether a file name has characters that this locale cannot encode."""
    encoding = sys.getfilesystemencoding()
    return (
        isinstance(error, UnicodeEncodeError)
        # In UTF-8 only half a surrogate pair cannot be encoded, which is a fault of the data.
        and encoding != "utf-8"
        and codecs.lookup(error.encoding).name == codecs.lookup(encoding).name
    )


def report_error(error: BaseException, *, as_json: bool) -> ExitCode:
    """Print the error as one line, and return the exit code."""
    code = code_of(error)
    text = " ".join(str(error).split()) or type(error).__name__
    message = mask_text(text, secrets_of_the_environment())
    if _is_about_a_file(error) and isinstance(error, OSError):
        message = _about_file(error)
    if _is_about_a_file_name(error):
        message = (
            f"the file name {error.object!r} cannot be written in this locale ({error.encoding}); "
            "use a UTF-8 locale, or set PYTHONUTF8=1"
        )
    if code is ExitCode.UNEXPECTED:
        message = f"{type(error).__name__}: {message} (unexpected; --debug shows where)"
    if as_json:
        described = {"code": int(code), "kind": type(error).__name__, "message": message}
        sys.stdout.write(json.dumps({"error": described}) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n")
    return code


def _about_file(error: OSError) -> str:
    if error.filename is None:  # no file of this package: those name themselves
        return f"cannot write the output: {error.strerror}"
    path = os.fsdecode(error.filename)
    return explain(error, Path(path)) if error.errno in FULL else f"{path}: {error.strerror}"
