"""Attach what hooks report about a call to its item, matched by response id and tool call id.

Hooks report when the item is already in the dataset, so their data is collected here and applied
in one go, before the next call is stored and at the end of the episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from orbiter.train.chat.message import Json, Message
from orbiter.train.chat.tool_calls import input_of, name_of
from orbiter.train.trajectory import TrajectoryItem

Change = Callable[[TrajectoryItem], TrajectoryItem]


class ToolRun(NamedTuple):
    """One execution of a tool."""

    name: str
    arguments: str | None
    """As the model wrote them; they identify the call if the framework does not give its id."""
    result: str | None
    error: str | None
    started: float
    """Start time in seconds since 1970 (UTC)."""
    seconds: float
    call_id: str | None = None


class _OpenToolCall(NamedTuple):
    step: int
    call_id: str
    name: str
    arguments: str


class Joins:
    """One episode's steps by the ids that hooks know, and what hooks have reported so far."""

    def __init__(self) -> None:
        self._step_of: dict[str, int] = {}
        self._latest: int | None = None
        self._calls: list[_OpenToolCall] = []
        """Tool calls without a known execution."""
        self._agents: dict[int, str] = {}
        self._notes: dict[int, dict[str, Json]] = {}

    def answered(self, step: int, response_id: str | None, calls: Iterable[Message]) -> None:
        """Note which step a reply became, and its tool calls."""
        self._latest = step
        if response_id is not None:
            # Later reports name the call by the id of its response.
            self._step_of[response_id] = step
        for call in calls:
            call_id = str(call.get("id") or "")
            self._calls.append(_OpenToolCall(step, call_id, name_of(call), input_of(call)))

    def tool_ran(self, run: ToolRun) -> None:
        """Record an execution for the step that requested it, or else for the latest step."""
        call = next((call for call in self._calls if _is_of(run, call)), None)
        if call is not None:
            # Each call is executed once, so the next equal execution belongs to the next call.
            self._calls.remove(call)
        step = call.step if call is not None else self._latest
        if step is None:
            return
        entries = {
            "id": run.call_id or (call.call_id if call is not None else None),
            "name": run.name,
            "result": run.result,
            "error": run.error,
            "started": run.started,
            "seconds": round(run.seconds, 6),
        }
        runs = self._notes.setdefault(step, {}).setdefault("tool_runs", [])
        runs.append({name: value for name, value in entries.items() if value is not None})

    def called_by(
        self, response_id: str | None, agent: str | None, branch: Mapping[str, object]
    ) -> None:
        """Record who made a call."""
        step = self._latest if response_id is None else self._step_of.get(response_id)
        if step is None:
            return
        if agent is not None:
            self._agents[step] = agent
        if branch:
            self.note(step, {"branch": dict(branch)})

    def note(self, step: int, metadata: Mapping[str, Json]) -> None:
        """Record metadata for a step."""
        self._notes.setdefault(step, {}).update(metadata)

    def take(self) -> Iterator[tuple[int, Change]]:
        """Yield each step with new data and the change to make, then clear the data."""
        if not (self._agents or self._notes):
            return
        agents, notes = self._agents, self._notes
        # Taken as a whole, so that hooks may report more while these are applied.
        self._agents, self._notes = {}, {}
        for step in sorted({*agents, *notes}):
            yield step, _change(agents.get(step), notes.get(step, {}))


def _is_of(run: ToolRun, call: _OpenToolCall) -> bool:
    if run.call_id is not None:
        return run.call_id == call.call_id
    # Without an id the first open call of that name and arguments is taken; a call answered is
    # removed, so equal calls are matched in order.
    return run.name == call.name and run.arguments in {None, call.arguments}


def _change(agent: str | None, notes: dict[str, Json]) -> Change:
    def change(item: TrajectoryItem) -> TrajectoryItem:
        metadata = {**item.metadata, **notes}
        if "tool_runs" in notes:
            # Executions are appended: several reports may reach the same item.
            metadata["tool_runs"] = [*_runs(item), *notes["tool_runs"]]
        return replace(item, metadata=metadata, agent=agent or item.agent)

    return change


def _runs(item: TrajectoryItem) -> list[Json]:
    known = item.metadata.get("tool_runs")
    return known if isinstance(known, list) else []
