"""A data file that is being read, with the rule for bad records."""

from __future__ import annotations

import codecs
import copy
import logging
import os
import stat
from pathlib import Path
from typing import IO, Literal, NamedTuple

from orbiter.train.errors import ConfigError, DataError, StorageError

BOM = codecs.BOM_UTF8
"""The byte order mark that some programs write at the start of a UTF-8 file."""

OnError = Literal["raise", "skip"]
"""What to do with a bad item: stop the import, or leave it out and report it."""
Extra = Literal["error", "metadata"]
"""What to do with an unknown field: raise an error, or move it into the metadata."""

log = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """A bad item that was left out of an import."""

    path: str
    line: int
    """The line number, from 1."""
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


class Source:
    """A file that is being read, with the rule for bad items."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        on_error: OnError,
        extra: Extra,
        skipped: list[Skipped],
        *,
        redact: bool = True,
    ) -> None:
        """Describe a file to read.

        Args:
            path: The file, or the folder for formats that are one.
            on_error: What to do with a bad item.
            extra: What to do with an unknown field.
            skipped: Gets the bad items that were left out.
            redact: Whether formats with private data mask it: secrets, addresses, home paths.
        """
        if on_error not in {"raise", "skip"}:
            raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if extra not in {"error", "metadata"}:
            raise ConfigError(f"extra must be 'error' or 'metadata', got {extra!r}")
        self.path = os.fspath(path)
        self.extra_to_metadata = extra == "metadata"
        self.on_error: OnError = on_error
        self.skipped = skipped
        self.redact = redact
        self.notes: list[str] = []
        """What was left out although nothing is wrong with it, for the report."""

    def inside(self, path: str | os.PathLike[str]) -> Source:
        """Return a file of this folder, read by the same rules and with the same reports."""
        # A shallow copy: both add to the same lists of skipped items and notes.
        source = copy.copy(self)
        source.path = os.fspath(path)
        return source

    def note(self, text: str) -> None:
        """Report something that was left out although nothing is wrong with it."""
        log.warning("%s: %s", self.path, text)
        self.notes.append(text)

    def open(self) -> IO[bytes]:
        """Open the file; a `StorageError` says why it cannot be read.

        A pipe is fine, since shells pass the output of commands as one; a device never ends.
        """
        try:
            file = Path(self.path).open("rb")  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}") from error
        mode = os.fstat(file.fileno()).st_mode
        if (stat.S_ISCHR(mode) and not file.isatty()) or stat.S_ISBLK(mode):
            file.close()
            raise StorageError(f"cannot read {self.path}: it is a device, not a file")
        return file

    def refuse(self, line: int, reason: str, cause: Exception | None = None) -> None:
        """Raise an error for a bad item, or add it to `skipped`."""
        skipped = Skipped(self.path, line, reason)
        if self.on_error == "raise":
            raise DataError(str(skipped)) from cause
        log.warning("skipped %s", skipped)
        self.skipped.append(skipped)


def reason_of(error: Exception) -> str:
    """Return the reason to give for a record that a reader could not convert."""
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
