"""Track which agent is calling the model, and how many `record` blocks are open."""

from __future__ import annotations

import threading
from contextvars import ContextVar

SPEAKER: ContextVar[str | None] = ContextVar("orbiter_speaker", default=None)
"""The agent that is calling the model, if a hook knows it."""


class _Open:
    """Counts the open `record` blocks, and the model calls made outside all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.blocks = 0
        self.strays = 0
        """Model calls seen outside every block while at least one was open; only ever grows."""

    def enter(self) -> int:
        with self._lock:
            self.blocks += 1
            return self.strays

    def leave(self) -> None:
        with self._lock:
            self.blocks -= 1

    def stray(self) -> None:
        if self.blocks:
            with self._lock:
                self.strays += 1


OPEN = _Open()
