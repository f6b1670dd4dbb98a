"""The way to an endpoint: how many at once, how fast, and not at all while it is down.

Whoever waits here has not failed: no attempt is counted, no time limit of a request runs. Only an
endpoint that answers nobody for `give_up_seconds` ends the waiting.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orbiter.train.llm.failure import ChatError, FailureKind
from orbiter.train.llm.pacing import Pacer

FAILURES_TO_OPEN = 10
"""Requests that fail in a row until the circuit is broken."""
FIRST_COOLDOWN, LONGEST_COOLDOWN = 0.5, 30.0
"""Seconds until one request tries whether the endpoint is back; doubled while it is not."""
PROBE_POLL = 0.05
"""Seconds between two looks at whether the one that tries has come back."""


class Breaker:
    """A circuit breaker: after many failures in a row nobody asks, then one tries for all."""

    def __init__(self) -> None:
        """Begin closed: requests pass."""
        self._failures = 0
        self._cooldown = FIRST_COOLDOWN
        self._retry_at = -math.inf
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether the circuit is broken."""
        return self._failures >= FAILURES_TO_OPEN

    def delay(self, now: float) -> float:
        """Return for how many seconds the next request must wait; 0 or less: it may go."""
        if not self.open:
            return 0.0
        return PROBE_POLL if self._probing else self._retry_at - now

    def sent(self) -> bool:
        """Take note that a request goes now; say whether it is the one that tries for all."""
        probes = self.open
        self._probing = self._probing or probes
        return probes

    def succeeded(self) -> None:
        """Close the circuit."""
        self._failures, self._cooldown, self._probing = 0, FIRST_COOLDOWN, False

    def failed(self, now: float) -> None:
        """Count a failure; the last one too many breaks the circuit."""
        was_probing, self._probing = self._probing, False
        self._failures += 1
        if self._failures == FAILURES_TO_OPEN or was_probing:
            self._retry_at = now + self._cooldown
            self._cooldown = min(2 * self._cooldown, LONGEST_COOLDOWN)

    def left(self) -> None:
        """Take note that the one that tried has ended, whatever it found."""
        self._probing = False


class Gate:
    """Lets requests through to one endpoint."""

    def __init__(self, *, concurrency: int, give_up_seconds: float) -> None:
        """Begin with nothing known about the endpoint."""
        self.pacer = Pacer()
        self.breaker = Breaker()
        self.give_up_seconds = give_up_seconds
        self._slots = asyncio.Semaphore(concurrency)
        self._door = asyncio.Lock()
        self._answered_at = -math.inf
        self._trouble: FailureKind = "rate_limit"

    @asynccontextmanager
    async def turn(self, waiting_since: float) -> AsyncIterator[float]:
        """Wait for a turn and hold it; gives the time at which it began.

        Raises:
            ChatError: the endpoint has answered nobody for too long.
        """
        async with self._slots:
            async with self._door:
                while (delay := self._delay(waiting_since)) > 0:  # noqa: ASYNC110 - time decides
                    await asyncio.sleep(delay)
                now = time.monotonic()
                self.pacer.sent(now)
                probes = self.breaker.sent()
            try:
                yield now
            finally:
                if probes:
                    self.breaker.left()

    def answered(self) -> None:
        """Take note of an answer, whatever it was worth: the endpoint is there."""
        self._answered_at = time.monotonic()
        self.breaker.succeeded()

    def failed(self, kind: FailureKind) -> None:
        """Take note of a request that failed for a reason that may concern all."""
        self._trouble = kind
        self.breaker.failed(time.monotonic())

    def rate_limited(self, sent_at: float, retry_after: float | None) -> None:
        """Take note of a 429."""
        self._trouble = "rate_limit"
        self.pacer.refused(sent_at, time.monotonic(), retry_after)

    def _delay(self, waiting_since: float) -> float:
        now = time.monotonic()
        delay = max(self.pacer.delay(now), self.breaker.delay(now))
        patience = max(waiting_since, self._answered_at) + self.give_up_seconds - now
        if delay > 0 and patience <= 0:
            raise ChatError(
                f"the endpoint has answered nobody for {self.give_up_seconds:g} seconds; the last "
                f"trouble was: {self._trouble}",
                kind=self._trouble,
            )
        return min(delay, patience) if delay > 0 else 0.0
