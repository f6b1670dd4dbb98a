"""Learn from an endpoint's 429 responses how fast requests may be sent.

Until the first 429 only the concurrency limits the rate. A 429 marks a moment at which the server's
allowance is used up; the number of requests accepted between two such moments, divided by the time
between them, is the rate it allows. We stay a little below, and try a little more after a while:
additive increase, multiplicative decrease, with the measured rate instead of a fixed halving
(compare CUBIC, https://www.rfc-editor.org/rfc/rfc9438). Times are seconds of a monotonic clock,
passed in.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort

SLACK = 0.05
"""Seconds of timer delay that may be caught up."""
WINDOW = 1.0
"""Seconds after which the accepted requests, however few, count as a measured rate."""
FIRST_WINDOW = 0.3
"""The same for the first rate, which only starts the search."""
SEARCH_GROWTH = (10.0, 1.25)
"""Growth factor per second after one 429, and after two."""
MARGIN = 0.97
"""Share of the measured rate that is used."""
LEAST_COUNT, MARGIN_UNMEASURED = 10, 0.85
"""Fewer requests in a shorter time are not a measurement; then the rate is cut to this share."""
HOLD_SECONDS, HOLD_PAUSES = 3.0, 15.0
"""How long a rate is kept before trying more, because each 429 costs a pause: at least this many
seconds, and at least this many pauses."""
PROBE_GROWTH, LATE_GROWTH, LATE_SECONDS = 1.04, 1.2, 15.0
"""Growth factor per second after that; and the one used after LATE_SECONDS without a 429, when the
limit has probably changed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds of silence after a 429 that names no time; doubled while nothing is accepted."""
REMEMBERED = 4096
"""Number of request times kept."""
LEAST_RATE = 0.01
"""Requests per second; a lower rate is not learned."""


class Pacer:
    """Decides when the next request may be sent."""

    def __init__(self) -> None:
        """Start without a limit."""
        self.rate = math.inf
        """Maximum requests per second."""
        self._next_at = -math.inf
        self._paused_until = -math.inf
        self._grown_at = -math.inf
        self._let_through: list[float] = []
        self._begin: float | None = None
        self._event: float | None = None
        self._burst_until = -math.inf
        self._known_from = -math.inf
        self._since = 0.0
        self._resumed = 0.0
        self._allowance = 0
        self._events = 0
        self._barren = 0
        self._hold = HOLD_SECONDS
        self._base = math.inf

    def delay(self, now: float) -> float:
        """Return how many seconds the next request must wait; 0 or less means it may go."""
        # The two limits are independent: the rate spaces requests, a 429 stops all of them.
        return max(self._next_at, self._paused_until) - now

    def sent(self, now: float) -> None:
        """Record that a request is sent now."""
        self._begin = now - SLACK if self._begin is None else self._begin
        # Requests may be recorded a little out of order, since they run concurrently.
        insort(self._let_through, now)
        # Memory is bounded; counts before this time are no longer known.
        if len(self._let_through) > REMEMBERED:
            self._known_from = self._let_through[REMEMBERED // 2 - 1]
            del self._let_through[: REMEMBERED // 2]
        if self._event is None:
            return
        self._grow(now)
        # A little into the past, so that a late timer does not lower the rate for good.
        self._next_at = max(self._next_at, now - SLACK) + 1 / self.rate

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Record a 429 for a request sent at `sent_at`, and the pause it asks for."""
        # The refused request was not accepted, so it leaves the record.
        index = bisect_right(self._let_through, sent_at) - 1
        if index >= 0 and self._let_through[index] == sent_at:
            del self._let_through[index]
        # A request sent before the last 429 arrived says nothing new: it belongs to that burst.
        if sent_at <= self._burst_until:
            if self._event is not None and self._event >= sent_at:
                self._measure(self._event)  # fewer requests were accepted than it seemed
            if retry_after is not None:
                self._paused_until = max(self._paused_until, now + retry_after)
            return
        since = self._burst_until
        # If nothing was accepted since the last 429, the pause doubles.
        self._barren = 0 if self._count(since, now) else self._barren + 1
        pause = min(FIRST_PAUSE * 2**self._barren, LONGEST_PAUSE)
        pause = pause if retry_after is None else retry_after
        if self._teaches(now):
            self._begin_event(now, pause)
        self._burst_until = now
        self._paused_until = max(self._paused_until, now + pause)
        # The rate starts again after the pause, without a burst to catch up.
        self._next_at = self._grown_at = self._paused_until

    def _teaches(self, now: float) -> bool:
        """Return whether this 429 allows a measurement: some request was accepted before it."""
        if self._event is None:
            return True
        return not self._barren and (self._events == 1 or now - self._event >= WINDOW)

    def _begin_event(self, now: float, pause: float) -> None:
        assert self._begin is not None, "what is refused has been sent"
        since = self._begin if self._event is None else self._event
        self._since = max(since, self._known_from)
        self._resumed = max(self._since, min(self._paused_until, now))
        self._event, self._events = now, self._events + 1
        self._base = self.rate
        self._measure(now)
        self._hold = max(HOLD_SECONDS, HOLD_PAUSES * min(pause, LONGEST_PAUSE))

    def _measure(self, now: float) -> None:
        """Set the rate by the requests accepted before the event at `now`, if there are any."""
        count = self._count(self._since, now)
        if self._events == 1:
            # The first 429 comes after a burst, which the server's allowance let through.
            self._allowance = self._count(max(self._since, now - WINDOW), now)
            self.rate = max(count, 1) / max(now - self._since, FIRST_WINDOW)
        elif now - self._since < WINDOW and count < LEAST_COUNT:
            self.rate = max(MARGIN_UNMEASURED * self._base, LEAST_RATE)
        elif count:
            # The requests accepted in a time are at most rate x time + allowance, and exactly that
            # since the last 429 unless some was left unused: each is a lower bound of the rate.
            bounds = [
                (self._count(start, now) - self._allowance) / (now - start)
                for start in (self._resumed, now - WINDOW)
                if self._since <= start < now
            ]
            measured = max(count / (now - self._since), *bounds, 0.0)
            self.rate = max(MARGIN * min(self._base, measured), LEAST_RATE)

    def _count(self, since: float, until: float) -> int:
        # The times are sorted, so both ends are found by bisection.
        return bisect_right(self._let_through, until) - bisect_right(self._let_through, since)

    def _grow(self, now: float) -> None:
        assert self._event is not None, "there is a rate only after a refusal"
        seconds, self._grown_at = max(0.0, now - self._grown_at), max(now, self._grown_at)
        late = now - self._event - self._hold
        if self._next_at < now - 1 / self.rate - SLACK:
            return  # no request was waiting, so the rate was not the bottleneck
        if self._events <= len(SEARCH_GROWTH):
            # Capped, so that a long idle time does not raise the rate at once.
            self.rate *= SEARCH_GROWTH[self._events - 1] ** min(seconds, 0.5)
        elif late > 0:
            growth = LATE_GROWTH if late > LATE_SECONDS else PROBE_GROWTH
            self.rate *= growth ** min(seconds, 1.0)
