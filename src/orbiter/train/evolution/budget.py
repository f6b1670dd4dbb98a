"""The limits of a run (evaluations, cost and seconds), checked before each evaluation."""

from __future__ import annotations

import time

from orbiter.train.evolution.config import EvolutionConfig, StopReason


class EvaluationBudget:
    """Hard limits: an evaluation that might exceed one is not begun.

    The cost of an evaluation is known only when it ends. Until then as much as the most expensive
    one so far is reserved for it, and evaluations that find no room wait. Before the first cost
    is known, one evaluation runs alone.
    """

    def __init__(self, config: EvolutionConfig) -> None:
        self._config = config
        self._begin = time.monotonic()
        self._highest_cost: float | None = None
        self._confirm = config.confirm
        self.running = 0
        self.evaluations = 0
        """Begun so far, including those replayed from the journal."""
        self.cost = 0.0
        """Spent so far."""

    def refuses(self) -> StopReason | None:
        """Return the reason why no further evaluation may begin, or None if one may."""
        config = self._config
        most = config.max_evaluations
        if most is not None and self.evaluations + self._confirm >= most:
            return StopReason.EVALUATIONS
        if config.max_seconds is not None and self.seconds >= config.max_seconds:
            return StopReason.TIME
        if config.max_cost is not None:
            held_back = (1 + self._confirm) * (self._highest_cost or 0.0)
            if self.cost + held_back > config.max_cost:
                return StopReason.COST
        return None

    def refuses_to_confirm(self) -> bool:
        """Use one of the reserved evaluations; return whether there is no budget even for it."""
        config, most = self._config, self._config.max_evaluations
        self._confirm -= 1
        cost = self.cost + (self.running + 1) * (self._highest_cost or 0.0)
        return (most is not None and self.evaluations >= most) or (
            config.max_cost is not None and cost > config.max_cost
        )

    @property
    def must_wait(self) -> bool:
        """Whether the next evaluation has to wait until the cost of the running ones is known."""
        most = self._config.max_cost
        if most is None or self.running == 0 or self.refuses() is not None:
            return False
        held_back = (self.running + 1 + self._confirm) * (self._highest_cost or 0.0)
        return self._highest_cost is None or self.cost + held_back > most

    @property
    def seconds(self) -> float:
        """Seconds since this start of the run."""
        return time.monotonic() - self._begin

    def begin(self) -> None:
        """Record that an evaluation begins."""
        self.evaluations += 1
        self.running += 1

    def end(self, cost: float) -> None:
        """Record that an evaluation has ended, and its cost."""
        self.running -= 1
        self.spend(cost)
        self._highest_cost = max(self._highest_cost or 0.0, cost)

    def spend(self, cost: float) -> None:
        """Record the cost of something else (a mutation)."""
        self.cost += cost
