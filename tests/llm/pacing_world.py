"""A server with an allowance and clients that wait for it, in virtual time that costs none."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from orbiter.train.llm.pacing import Pacer


@dataclass(slots=True)
class World:
    """`concurrency` callers ask through one `Pacer`; the server lets `rate` a second through."""

    rate: float
    burst: float
    latency: float = 0.02
    retry_after: float | None = None
    concurrency: int = 64
    pacer: Pacer = field(default_factory=Pacer)
    arrivals: list[float] = field(default_factory=list[float])
    answered: list[float] = field(default_factory=list[float])
    refusals: list[float] = field(default_factory=list[float])
    _level: float = 0.0
    _filled_at: float = 0.0

    def run(self, seconds: float) -> None:
        """Let everybody ask without a break for so long."""
        self._level = self.burst
        now, free = 0.0, self.concurrency
        replies: list[tuple[float, float, bool]] = []
        while now < seconds:
            if free and self.pacer.delay(now) <= 0:
                self.pacer.sent(now)
                free -= 1
                done = now + (self.latency if self._admits(now) else self.latency / 4)
                heapq.heappush(replies, (done, now, self.arrivals[-1] in self.refusals[-1:]))
                now += 1e-6
                continue
            wake = now + max(self.pacer.delay(now), 1e-6) if free else float("inf")
            if replies and replies[0][0] <= wake:
                now, sent_at, refused = heapq.heappop(replies)
                free += 1
                if refused:
                    self.pacer.refused(sent_at, now, self.retry_after)
                else:
                    self.answered.append(now)
            else:
                now = wake

    def _admits(self, now: float) -> bool:
        self._level = min(self.burst, self._level + (now - self._filled_at) * self.rate)
        self._filled_at = now
        self.arrivals.append(now)
        if self._level < 1:
            self.refusals.append(now)
            return False
        self._level -= 1
        return True

    def throughput(self, since: float, until: float) -> float:
        """Answers over what the server allowed in that time."""
        return sum(since <= t < until for t in self.answered) / (self.rate * (until - since))

    def worst_second(self) -> float:
        """Most arrivals in any window after the first refusal, over what is allowed in it."""
        length = max(1.0, 20 / self.rate)
        later = [t for t in self.arrivals if t > self.refusals[0] + self.latency]
        worst, first = 0, 0
        for place, t in enumerate(later):
            while later[first] < t - length:
                first += 1
            worst = max(worst, place - first + 1)
        return worst / (self.rate * length + self.burst)
