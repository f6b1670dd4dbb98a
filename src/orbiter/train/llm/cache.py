"""Store paid answers in one SQLite file, each committed before it is used.

The body of the response is stored byte for byte. Texts, token counts and values are parsed from it
again each time, so that a better parser also improves old answers. Answers never expire.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orbiter.train.disk import explain, free_bytes, is_read_only
from orbiter.train.errors import DataError, StorageError

LEAST_FREE = 1 << 20
"""Free bytes below which an error of SQLite about reading or writing means a full disk."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS response (
    key BLOB PRIMARY KEY, model TEXT NOT NULL, request BLOB NOT NULL, raw BLOB NOT NULL,
    cost REAL NOT NULL, created REAL NOT NULL
) WITHOUT ROWID
"""


class Request(NamedTuple):
    """A request in the form that the cache stores."""

    body: bytes
    """Model, messages, parameters, schema and sample index as JSON."""
    key: bytes
    """Its cache key, the same in every process."""


def request_of(
    model: str,
    messages: Sequence[Mapping[str, object]],
    parameters: Mapping[str, object],
    *,
    schema: Mapping[str, object] | None,
    index: int,
) -> Request:
    """Return a request with its cache key.

    Raises:
        DataError: the messages or the parameters are not JSON.
    """
    asked = {
        "model": model,
        "messages": messages,
        "parameters": parameters,
        "schema": schema,
        "sample": index,
    }
    try:
        # Sorted keys, so that equal requests have equal keys whatever the order of their fields.
        body = msgspec.json.encode(asked, order="deterministic")
    except (TypeError, ValueError) as error:
        raise DataError(f"messages and parameters must be JSON: {error}") from error
    return Request(body, hashlib.blake2b(body, digest_size=20).digest())


class ResponseCache:
    """A file of answers; several processes may use it at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or create the cache at `path`.

        Raises:
            StorageError: the file cannot be opened, or is not a response cache.
        """
        self.path = Path(path)
        self._db: sqlite3.Connection | None = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A second event loop may run in another thread; calls never overlap.
            db = sqlite3.connect(
                self.path, timeout=30, isolation_level=None, check_same_thread=False
            )
            db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode, NORMAL loses nothing when a process dies; only a power cut can cost
            # the last answers.
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_SCHEMA)
            # Fails for a file that is another program's database.
            db.execute("SELECT key, model, request, raw, cost, created FROM response LIMIT 0")
        except OSError as error:
            raise StorageError(explain(error, self.path)) from error
        except sqlite3.Error as error:
            raise self._failure(error) from error
        return db

    def get(self, request: Request) -> bytes | None:
        """Return the body of the response to `request`, or None."""
        row = self._run("SELECT raw FROM response WHERE key = ?", (request.key,)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, request: Request, raw: bytes, *, model: str, cost: float) -> None:
        """Store a response; on return it survives the end of the process."""
        row = (request.key, model, request.body, raw, cost, time.time())
        # OR IGNORE: another process may have stored the same answer first.
        self._run("INSERT OR IGNORE INTO response VALUES (?, ?, ?, ?, ?, ?)", row)

    @property
    def cost(self) -> float:
        """Total cost of all answers in the file."""
        return float(self._run("SELECT total(cost) FROM response", ()).fetchone()[0])

    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM response", ()).fetchone()[0])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _run(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        self._db = self._db or self._open()
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error) -> StorageError:
        """Return a storage error with the disk's own reason, which SQLite's message hides."""
        # The low byte is the primary code; extended codes carry the detail above it.
        kind = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if kind == sqlite3.SQLITE_FULL or (
            kind == sqlite3.SQLITE_IOERR and free_bytes(self.path) < LEAST_FREE
        ):
            return StorageError(explain(OSError(errno.ENOSPC, str(error)), self.path))
        if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) and is_read_only(self.path):
            return StorageError(explain(OSError(errno.EROFS, os.strerror(errno.EROFS)), self.path))
        return StorageError(f"cannot use the response cache {self.path}: {error}")
