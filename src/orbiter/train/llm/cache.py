"""Answers that were paid for, in one SQLite file: committed one by one, as they came.

What is kept is the body of the response, byte for byte; texts, token counts and values are read out
of it anew each time, so a better parser never makes an answer worthless. Left out: expiry.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orbiter.train.errors import DataError, StorageError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS response (
    key BLOB PRIMARY KEY, model TEXT NOT NULL, request BLOB NOT NULL, raw BLOB NOT NULL,
    cost REAL NOT NULL, created REAL NOT NULL
) WITHOUT ROWID
"""


class Request(NamedTuple):
    """One thing to be asked."""

    body: bytes
    """Model, messages, parameters, schema and sample index as JSON."""
    key: bytes
    """Its name: the same in every process."""


def request_of(
    model: str,
    messages: Sequence[Mapping[str, object]],
    parameters: Mapping[str, object],
    *,
    schema: Mapping[str, object] | None,
    index: int,
) -> Request:
    """Return a request under its name.

    Raises:
        DataError: something in it is no JSON.
    """
    asked = {
        "model": model,
        "messages": messages,
        "parameters": parameters,
        "schema": schema,
        "sample": index,
    }
    try:
        body = msgspec.json.encode(asked, order="deterministic")
    except (TypeError, ValueError) as error:
        raise DataError(f"messages and parameters must be JSON: {error}") from error
    return Request(body, hashlib.blake2b(body, digest_size=20).digest())


class ResponseCache:
    """A file of answers; several processes may use it at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or create the cache at `path`.

        Raises:
            StorageError: it cannot be opened, or is no such file.
        """
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode, NORMAL loses nothing when a process dies; only a power cut can cost
            # the last answers.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
            self._db.execute("SELECT key, model, request, raw, cost, created FROM response LIMIT 0")
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot open the response cache {self.path}: {error}") from error

    def get(self, request: Request) -> bytes | None:
        """Return the body of the response to `request`, or None."""
        found = self._run("SELECT raw FROM response WHERE key = ?", (request.key,)).fetchone()
        return None if found is None else bytes(found[0])

    def put(self, request: Request, raw: bytes, *, model: str, cost: float) -> None:
        """Keep a response; when this returns it outlives the process."""
        row = (request.key, model, request.body, raw, cost, time.time())
        self._run("INSERT OR IGNORE INTO response VALUES (?, ?, ?, ?, ?, ?)", row)

    @property
    def cost(self) -> float:
        """What all answers in the file have cost."""
        return float(self._run("SELECT total(cost) FROM response", ()).fetchone()[0])

    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM response", ()).fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _run(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise StorageError(f"response cache {self.path}: {error}") from error
