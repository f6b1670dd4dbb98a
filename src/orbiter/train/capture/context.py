"""Track which episode the running code belongs to, and how many episodes are open.

The current episode is a context variable, so tasks and `asyncio.to_thread` inherit it;
`threads.py` carries it into plain threads. Episodes themselves are in `episode.py`.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orbiter.train.capture.episode import Episode

CURRENT: ContextVar[Episode | None] = ContextVar("orbiter_episode", default=None)
"""The innermost episode that encloses the running code."""


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
