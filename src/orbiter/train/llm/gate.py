"""Admit requests to one endpoint: how many at once, how fast, and none while it is down.

Waiting here is not a failure: it does not count as an attempt, and a request's time limit does not
run. Waiting ends only if the endpoint answers no call for `give_up_seconds`.
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
"""Consecutive failed requests that open the circuit breaker."""
FIRST_COOLDOWN, LONGEST_COOLDOWN = 0.5, 30.0
"""Seconds until one request tests whether the endpoint is back; doubled while it is not."""
PROBE_POLL = 0.05
"""Seconds between checks whether the probe request has returned."""


class Breaker:
    """A circuit breaker: after many failures in a row, one request tests for all the others."""

    def __init__(self) -> None:
        """Start closed: requests pass."""
        self._failures = 0
        self._cooldown = FIRST_COOLDOWN
        self._retry_at = -math.inf
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether requests are held back."""
        return self._failures >= FAILURES_TO_OPEN

    def delay(self, now: float) -> float:
        """Return the seconds that the next request must wait; 0 or less means it may go."""
        if not self.open:
            return 0.0
        # While a probe is in progress its outcome is checked often.
        return PROBE_POLL if self._probing else self._retry_at - now

    def sent(self) -> bool:
        """Record that a request is sent now; return whether it is the probe."""
        probes = self.open
        self._probing = self._probing or probes
        return probes

    def succeeded(self) -> None:
        """Close the breaker."""
        self._failures, self._cooldown, self._probing = 0, FIRST_COOLDOWN, False

    def failed(self, now: float) -> None:
        """Count a failure, which may open the breaker."""
        was_probing, self._probing = self._probing, False
        self._failures += 1
        # A failed probe opens it again, even if the count has passed the limit.
        if self._failures == FAILURES_TO_OPEN or was_probing:
            self._retry_at = now + self._cooldown
            self._cooldown = min(2 * self._cooldown, LONGEST_COOLDOWN)

    def left(self) -> None:
        """Record that the probe has ended, whatever its outcome."""
        self._probing = False


class Gate:
    """Lets requests through to one endpoint."""

    def __init__(self, *, concurrency: int, give_up_seconds: float) -> None:
        """Start without any knowledge of the endpoint."""
        self.pacer = Pacer()
        self.breaker = Breaker()
        self.give_up_seconds = give_up_seconds
        self._concurrency = concurrency
        self._answered_at = -math.inf
        self._trouble: FailureKind = "rate_limit"
        self.bind()

    def bind(self) -> None:
        """Use the running event loop from now on; knowledge of the endpoint is kept."""
        self._slots = asyncio.Semaphore(self._concurrency)
        self._door = asyncio.Lock()
        self.breaker.left()  # the probe belonged to the previous loop

    @asynccontextmanager
    async def turn(self, waiting_since: float) -> AsyncIterator[float]:
        """Wait for a turn and hold it for the block; yields the start time.

        Raises:
            ChatError: the endpoint has answered no call for `give_up_seconds`.
        """
        # Kept as locals: `bind` may replace them while this request waits.
        slots, door = self._slots, self._door
        await self._acquire(slots, waiting_since)
        try:
            # One at a time: the pacer's next moment must be taken by one request before another
            # looks.
            await self._acquire(door, waiting_since)
            try:
                while (delay := self._delay(waiting_since)) > 0:  # noqa: ASYNC110 - time decides
                    await asyncio.sleep(delay)
                now = time.monotonic()
                self.pacer.sent(now)
                probes = self.breaker.sent()
            finally:
                # Released before the request runs, so that others may be sent meanwhile.
                door.release()
            try:
                yield now
            finally:
                if probes:
                    # A probe that was cancelled must not keep the breaker waiting for its
                    # outcome.
                    self.breaker.left()
        finally:
            slots.release()

    def patience(self, waiting_since: float) -> float:
        """Return how many more seconds the endpoint may be silent; 0 or less means give up."""
        return max(waiting_since, self._answered_at) + self.give_up_seconds - time.monotonic()

    def alive(self) -> None:
        """Record a sign of life: the endpoint is working on an answer."""
        self._answered_at = time.monotonic()

    def answered(self) -> None:
        """Record a response, whatever its status: the endpoint is reachable."""
        self.alive()
        self.breaker.succeeded()

    def failed(self, kind: FailureKind) -> None:
        """Record a failure whose cause may affect all requests."""
        self._trouble = kind
        self.breaker.failed(time.monotonic())

    def rate_limited(self, sent_at: float, retry_after: float | None) -> None:
        """Record a 429; a pause is capped at `give_up_seconds`, so that later calls still try."""
        self._trouble = "rate_limit"
        if retry_after is not None:
            retry_after = min(retry_after, self.give_up_seconds)
        self.pacer.refused(sent_at, time.monotonic(), retry_after)

    async def _acquire(self, lock: asyncio.Semaphore | asyncio.Lock, waiting_since: float) -> None:
        """Acquire a lock, unless the endpoint is silent for too long meanwhile."""
        # Without a timer where the lock is free, which is the common case.
        if not lock.locked():
            await lock.acquire()
            return
        while True:
            try:
                async with asyncio.timeout(max(0.0, self.patience(waiting_since))):
                    await lock.acquire()
                return
            except TimeoutError:
                # The endpoint may have answered another call meanwhile, which extends the
                # patience.
                if self.patience(waiting_since) <= 0:
                    raise self._given_up() from None

    def _delay(self, waiting_since: float) -> float:
        now = time.monotonic()
        delay = max(self.pacer.delay(now), self.breaker.delay(now))
        if delay <= 0:
            return 0.0
        patience = self.patience(waiting_since)
        if patience <= 0:
            raise self._given_up()
        return min(delay, patience)

    def _given_up(self) -> ChatError:
        return ChatError(
            f"the endpoint has answered no call for {self.give_up_seconds:g} seconds; the last "
            f"failure was: {self._trouble}",
            kind=self._trouble,
        )
