"""Hook for smolagents: the agent's name and the outcome of each step's calls, from a callback.

    from orbiter.train.capture.hooks import smolagents
    agent = ToolCallingAgent(..., step_callbacks=[smolagents.on_step])

A smolagents step has one duration and one observation for all its calls; its executions share them.
"""

from __future__ import annotations

from typing import Any

from orbiter.train.capture.episode import CURRENT
from orbiter.train.capture.joining import ToolRun

Foreign = Any
"""An object of the framework."""


def on_step(step: Foreign, agent: Foreign) -> None:
    """Report a finished step to the episode; outside of `record` it does nothing."""
    episode = CURRENT.get()
    if episode is None:
        return
    output = step.model_output_message
    # A step that failed before the model answered has no output.
    raw = output.raw if output is not None else None
    response_id = getattr(raw, "id", None)
    branch = {"step": step.step_number}
    episode.called_by(response_id, agent.name or type(agent).__name__, branch)
    for call in step.tool_calls or ():
        episode.tool_ran(_run(step, call.id, call.name))
    if not step.tool_calls and output is not None:  # a failed step no longer lists its calls
        for call in output.tool_calls or ():
            episode.tool_ran(_run(step, call.id, call.function.name))


def _run(step: Foreign, call_id: str, name: str) -> ToolRun:
    return ToolRun(
        name=name,
        arguments=None,
        result=None if step.error is not None else step.observations,
        error=None if step.error is None else str(step.error),
        started=step.timing.start_time,
        seconds=step.timing.duration or 0.0,
        call_id=call_id,
    )
