"""A budget that cannot be passed: a request is sent only when its worst case still fits."""

from __future__ import annotations

import asyncio
import math

from orbiter.train.llm.failure import BudgetError


class Budget:
    """Money spent, and money that requests under way may still cost."""

    def __init__(self, limit: float | None, *, spent: float = 0.0) -> None:
        """Begin with what was spent before; `limit` None never stops anybody."""
        self.limit = math.inf if limit is None else limit
        self.spent = spent
        self._reserved: list[float] = []
        self._settled = asyncio.Event()

    async def reserve(self, most: float) -> None:
        """Set `most` aside; while it does not fit, wait for what is under way to cost less.

        Raises:
            BudgetError: it does not fit, and nothing is under way that could make room.
        """
        while self.spent + math.fsum(self._reserved) + most > self.limit:
            if not self._reserved:
                raise BudgetError(
                    f"the next request may cost {most:.6g}, and {self.spent:.6g} of the budget of "
                    f"{self.limit:.6g} is spent; raise the budget, or lower max_tokens"
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved.append(most)

    def settle(self, most: float, cost: float) -> None:
        """Give back what was set aside, and count what it did cost."""
        self._reserved.remove(most)
        self.spent += cost
        self._settled.set()
