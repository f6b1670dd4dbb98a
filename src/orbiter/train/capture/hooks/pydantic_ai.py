"""Hook for pydantic-ai: the agent's name and tool executions, from a capability.

from orbiter.train.capture.hooks import pydantic_ai
agent = Agent(..., capabilities=[pydantic_ai.capability()])
"""

from __future__ import annotations

import time
from typing import Any

from orbiter.train.capture.context import SPEAKER
from orbiter.train.capture.episode import CURRENT
from orbiter.train.capture.joining import ToolRun
from orbiter.train.errors import require

Foreign = Any
"""An object of the framework."""


def capability() -> Foreign:
    """Return a capability for `Agent(capabilities=[...])`; outside of `record` it does nothing."""
    base = require("pydantic_ai.capabilities", extra="capture").AbstractCapability

    class Capture(base):  # type: ignore[misc, valid-type]
        """Reports which agent calls the model, and the outcome of its tools."""

        async def wrap_model_request(
            self, ctx: Foreign, *, request_context: Foreign, handler: Foreign
        ) -> Foreign:
            # Restored afterwards: an agent may be a tool of another agent.
            before = SPEAKER.get()
            SPEAKER.set(ctx.agent.name if ctx.agent is not None else None)
            try:
                return await handler(request_context)
            finally:
                SPEAKER.set(before)

        async def wrap_tool_execute(
            self, _ctx: Foreign, *, call: Foreign, args: Foreign, handler: Foreign, **_: object
        ) -> Foreign:
            clock = _Clock(call)
            try:
                result = await handler(args)
            except Exception as error:
                clock.tell(None, f"{type(error).__name__}: {error}")
                raise
            clock.tell(str(result), None)
            return result

    return Capture()


class _Clock:
    """Times one execution of a tool."""

    def __init__(self, call: Foreign) -> None:
        self._call, self._started, self._clock = call, time.time(), time.perf_counter()

    def tell(self, result: str | None, error: str | None) -> None:
        episode = CURRENT.get()
        if episode is not None:
            run = ToolRun(
                name=self._call.tool_name,
                arguments=None,
                result=result,
                error=error,
                started=self._started,
                seconds=time.perf_counter() - self._clock,
                call_id=self._call.tool_call_id,
            )
            episode.tool_ran(run)
