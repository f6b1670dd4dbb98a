"""Hook for openai-agents: agent names and tool executions, from the framework's tracing.

    from orbiter.train.capture.hooks import openai_agents
    openai_agents.install()

Its tool spans carry no call id: an execution is matched to the call with the same name and
arguments. If tracing is switched off (`set_tracing_disabled`), this hook sees nothing.
"""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Any

from orbiter.train.capture.context import SPEAKER
from orbiter.train.capture.episode import CURRENT
from orbiter.train.capture.joining import ToolRun
from orbiter.train.errors import require

Span = Any
"""A span of the framework."""


@functools.cache
def install() -> None:
    """Listen to every run of every agent from now on; repeated calls do nothing."""
    agents = require("agents", extra="capture")
    agents.add_trace_processor(_processor(agents.TracingProcessor))


def _processor(base: Any) -> object:  # noqa: ANN401 - a class of the framework
    class SpanFollower(base):  # type: ignore[misc]
        """Follows the spans of a run."""

        def __init__(self) -> None:
            self._agent_of: dict[str, str | None] = {}

        def on_trace_start(self, trace: object) -> None:
            pass

        def on_trace_end(self, trace: object) -> None:
            pass

        def on_span_start(self, span: Span) -> None:
            if CURRENT.get() is None:
                return
            kind = span.span_data.type
            # Only the span of an agent has its name; those below it inherit it.
            agent = self._agent_of.get(span.parent_id)
            self._agent_of[span.span_id] = span.span_data.name if kind == "agent" else agent
            if kind in _ASKING:
                # The HTTP request of this span is made next, in the same context.
                SPEAKER.set(agent)

        def on_span_end(self, span: Span) -> None:
            # Children end before their parents, so nothing needs it any more.
            self._agent_of.pop(span.span_id, None)
            episode, kind = CURRENT.get(), span.span_data.type
            if kind in _ASKING:
                SPEAKER.set(None)
            if episode is not None and kind == "function":
                episode.tool_ran(_run(span))

        def shutdown(self) -> None:
            pass

        def force_flush(self) -> None:
            pass

    return SpanFollower()


_ASKING = frozenset(("generation", "response"))


def _run(span: Span) -> ToolRun:
    data, error = span.span_data, span.error
    started = datetime.fromisoformat(span.started_at).timestamp()
    return ToolRun(
        name=data.name,
        arguments=data.input,
        result=None if data.output is None else str(data.output),
        error=None if error is None else f"{error['message']} {error.get('data') or ''}".strip(),
        started=started,
        seconds=datetime.fromisoformat(span.ended_at).timestamp() - started,
    )
