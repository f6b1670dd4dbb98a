"""A budget that cannot be exceeded: a request is sent only when its worst case still fits."""

from __future__ import annotations

import asyncio
import math

from orbiter.train.llm.failure import BudgetError


class Budget:
    """Money spent, and money that requests in flight may still cost."""

    def __init__(self, limit: float | None, *, spent: float = 0.0) -> None:
        """Start with the amount spent earlier; a `limit` of None allows everything."""
        self.limit = math.inf if limit is None else limit
        self.spent = spent
        self._reserved: list[float] = []
        self.bind()

    def bind(self) -> None:
        """Use the running event loop from now on."""
        # asyncio's events belong to one loop, and the same budget may be used by several in turn.
        self._settled = asyncio.Event()

    async def reserve(self, most: float) -> None:
        """Set `most` aside; if it does not fit, wait until requests in flight cost less.

        Raises:
            BudgetError: it does not fit, and no request in flight could make room.
        """
        # fsum: after many small costs the sum must not drift past the limit.
        # A loop, because another waiter may have taken the room in the meantime.
        while self.spent + math.fsum(self._reserved) + most > self.limit:
            # Nothing in flight can free a part of its reservation, so waiting would never end.
            if not self._reserved:
                raise BudgetError(
                    f"the next request may cost {most:.6g}, and {self.spent:.6g} of the budget of "
                    f"{self.limit:.6g} is spent; raise the budget, or lower max_tokens"
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved.append(most)

    def settle(self, most: float, cost: float) -> None:
        """Release a reservation of `most` and record the actual `cost`."""
        self._reserved.remove(most)
        self.spent += cost
        self._settled.set()
