"""Parses times that are given as text."""

from __future__ import annotations

from datetime import UTC, datetime

from orbiter.train.errors import DataError
from orbiter.train.json_files import fields


def time_of(text: object) -> float | None:
    """Return an ISO time in seconds since 1970; without a zone it is UTC.

    Raises:
        DataError: it is not an ISO time.
    """
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(str(text))
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise DataError(f"expected an ISO time, got {fields.shown(text)}") from error
