"""Hook for langgraph and langchain: nodes, branches and tool executions, from callbacks.

from orbiter.train.capture.hooks import langgraph
langgraph.install()
"""

from __future__ import annotations

import functools
import time
from contextvars import ContextVar
from typing import Any, NamedTuple

from orbiter.train.capture.episode import CURRENT
from orbiter.train.capture.joining import ToolRun
from orbiter.train.errors import require

Foreign = Any
"""An object of the framework."""

_BRANCH = ("langgraph_node", "langgraph_step", "langgraph_checkpoint_ns")


class _RunningTool(NamedTuple):
    name: str
    call_id: str | None
    started: float
    clock: float


@functools.cache
def install() -> None:
    """Listen to every graph and chain from now on; repeated calls do nothing."""
    callbacks = require("langchain_core.callbacks", extra="capture")
    context = require("langchain_core.tracers.context", extra="capture")
    handler = _handler(callbacks.BaseCallbackHandler)
    # The default is found in every context, also in threads that were started before.
    variable = ContextVar("orbiter_langgraph", default=handler)
    context.register_configure_hook(variable, inheritable=True)


def _handler(base: Foreign) -> object:
    """Return a handler; its class is made here because langchain is imported only on `install`."""
    return type("Handler", (_Watcher, base), {})()


class _Watcher:
    """The callbacks of the handler; remembers what has started until it ends."""

    # In the order of the events; otherwise langchain may run callbacks in other threads.
    run_inline = True

    def __init__(self) -> None:
        self._asking: dict[object, dict[str, Any]] = {}
        self._tools: dict[object, _RunningTool] = {}

    def on_chat_model_start(self, *_: object, run_id: object, **context: Any) -> None:  # noqa: ANN401
        if CURRENT.get() is not None:
            self._asking[run_id] = context.get("metadata") or {}

    def on_llm_end(self, response: Foreign, *, run_id: object, **_: object) -> None:
        # Popped in any case, or calls outside of episodes would pile up.
        metadata, episode = self._asking.pop(run_id, None), CURRENT.get()
        if metadata is None or episode is None:
            return
        branch = {
            name.removeprefix("langgraph_"): metadata[name] for name in _BRANCH if name in metadata
        }
        # A plain graph names no agent; its node is the closest thing.
        agent = metadata.get("lc_agent_name") or branch.get("node")
        episode.called_by(_response_id(response), agent, branch)

    def on_llm_error(self, _error: BaseException, *, run_id: object, **_: object) -> None:
        self._asking.pop(run_id, None)

    def on_tool_start(
        self,
        serialized: Foreign,
        _input: str,
        *,
        run_id: object,
        **context: Any,  # noqa: ANN401
    ) -> None:
        if CURRENT.get() is not None:
            name = (serialized or {}).get("name") or context.get("name") or "tool"
            now = time.perf_counter()
            self._tools[run_id] = _RunningTool(name, context.get("tool_call_id"), time.time(), now)

    def on_tool_end(self, output: Foreign, *, run_id: object, **_: object) -> None:
        # A tool's error that langchain handled is a result with this status, not an exception.
        failed = getattr(output, "status", "") == "error"
        text = str(getattr(output, "content", output))
        call_id = getattr(output, "tool_call_id", None)
        self._note_outcome(run_id, call_id, None if failed else text, text if failed else None)

    def on_tool_error(self, error: BaseException, *, run_id: object, **_: object) -> None:
        self._note_outcome(run_id, None, None, f"{type(error).__name__}: {error}")

    def _note_outcome(
        self, run_id: object, call_id: str | None, result: str | None, error: str | None
    ) -> None:
        tool, episode = self._tools.pop(run_id, None), CURRENT.get()
        if tool is None or episode is None:
            return
        run = ToolRun(
            name=tool.name,
            arguments=None,
            result=result,
            error=error,
            started=tool.started,
            seconds=time.perf_counter() - tool.clock,
            call_id=call_id or tool.call_id,
        )
        episode.tool_ran(run)


def _response_id(response: Foreign) -> str | None:
    """Return the id that the server gave its answer."""
    message = response.generations[0][0].message
    response_id = message.response_metadata.get("id") or message.id
    return str(response_id) if response_id else None
