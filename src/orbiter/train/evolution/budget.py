"""What a run may still spend: evaluations, cost and seconds, checked before each start."""

from __future__ import annotations

import time

from orbiter.train.evolution.config import EvolutionConfig, StopReason


class Budget:
    """Hard limits: an evaluation that might pass one is not begun.

    The cost of an evaluation is known only when it ends. While any is under way, as much as the
    dearest so far is held back for it, and what finds no room waits; before the first cost is
    known, one runs alone.
    """

    def __init__(self, config: EvolutionConfig) -> None:
        self._config = config
        self._begin = time.monotonic()
        self._dearest: float | None = None
        self._confirm = config.confirm
        self.under_way = 0
        self.evaluations = 0
        """Begun so far, replayed ones included."""
        self.cost = 0.0
        """Spent so far."""

    def refuses(self) -> StopReason | None:
        """Return why no further evaluation may begin, or None where one may."""
        config = self._config
        most = config.max_evaluations
        if most is not None and self.evaluations + self._confirm >= most:
            return StopReason.EVALUATIONS
        if config.max_seconds is not None and self.seconds >= config.max_seconds:
            return StopReason.TIME
        if config.max_cost is not None:
            held_back = (1 + self._confirm) * (self._dearest or 0.0)
            if self.cost + held_back > config.max_cost:
                return StopReason.COST
        return None

    def refuses_to_confirm(self) -> bool:
        """Take one evaluation of those held back; say whether there is no budget even for it."""
        config, most = self._config, self._config.max_evaluations
        self._confirm -= 1
        cost = self.cost + (self.under_way + 1) * (self._dearest or 0.0)
        return (most is not None and self.evaluations >= most) or (
            config.max_cost is not None and cost > config.max_cost
        )

    @property
    def must_wait(self) -> bool:
        """Say whether the next one has to wait until it is known what those under way cost."""
        most = self._config.max_cost
        if most is None or self.under_way == 0 or self.refuses() is not None:
            return False
        held_back = (self.under_way + 1 + self._confirm) * (self._dearest or 0.0)
        return self._dearest is None or self.cost + held_back > most

    @property
    def seconds(self) -> float:
        """Seconds since this start of the run."""
        return time.monotonic() - self._begin

    def begin(self) -> None:
        """An evaluation begins."""
        self.evaluations += 1
        self.under_way += 1

    def end(self, cost: float) -> None:
        """It has ended, and cost so much."""
        self.under_way -= 1
        self.spend(cost)
        self._dearest = max(self._dearest or 0.0, cost)

    def spend(self, cost: float) -> None:
        """Something else (a mutation) cost so much."""
        self.cost += cost
