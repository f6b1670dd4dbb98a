"""Groups spans in any order by trace and makes items: an episode is a trace, a step a model call.

A trace is held until the window is full and then released as a whole: its calls by their start,
with the scores of evaluations, the runs of the tools that they called, and the names of the agents
above them. The window is bounded, and so is memory. Therefore a trace whose spans are further apart
than the window is released in several parts, in order. A score or tool run that arrives in a later
part than its call is left out and counted in a warning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from orbiter.train.errors import DataError
from orbiter.train.tracing.dialects import Memory, Said, said_in
from orbiter.train.tracing.facts import (
    SpanScore,
    agent_of,
    facts_of,
    is_call,
    is_tool_run,
    reward_of,
    says_something,
    scores_of,
    tool_run_of,
)
from orbiter.train.tracing.recorded import NO_ANSWER, Maker, Recorder
from orbiter.train.tracing.span import Span
from orbiter.train.trajectory import TrajectoryItem

WINDOW = 24 << 20
"""The largest total size of the traces held: in bytes of attributes if they are from a file,
otherwise in characters of text."""
TRACES = 1 << 16
"""The number of released traces whose step count is remembered."""
SPAN_COST = 512
"""The size that is added for each span, besides its text."""

Refuse = Callable[[int, str, Exception | None], None]


class _ModelCall(NamedTuple):
    span: Span
    said: Said


@dataclass(slots=True)
class _Trace:
    """The spans and scores of a trace that is being held."""

    calls: list[Span] = field(default_factory=list)
    runs: list[Span] = field(default_factory=list)
    scores: list[SpanScore] = field(default_factory=list)
    parents: dict[str, str | None] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)
    weight: int = 0


@dataclass(slots=True)
class Counts:
    """The numbers of spans, calls and problems seen so far."""

    spans: int = 0
    calls: int = 0
    silent: int = 0
    """Calls of a model whose messages were not recorded."""
    homeless: int = 0
    """Scores and tool runs whose call was released before they arrived, or does not exist."""


class Traces:
    """The window: takes spans and yields items."""

    def __init__(
        self,
        refuse: Refuse,
        *,
        make: Maker = TrajectoryItem,
        reward: str | None = None,
        window: int = WINDOW,
    ) -> None:
        """Start empty.

        Args:
            refuse: Called for every bad span with its line and the reason.
            make: Makes an item from its fields.
            reward: The name of the evaluation that is the reward; by default the one named
                "reward", or the only one.
            window: The largest total size of the traces held, in the unit of `WINDOW`.
        """
        self.counts = Counts()
        self._told = refuse
        self._make = make
        self._reward = reward
        self._window = window
        self._weight = 0
        self._held: OrderedDict[str, _Trace] = OrderedDict()
        self._steps: OrderedDict[str, int] = OrderedDict()

    def add(self, span: Span) -> Iterator[TrajectoryItem]:
        """Add a span; yield the items of the traces that have to leave the window for it."""
        try:
            weight = self._take_in(span)
        except (DataError, RecursionError) as error:
            self._refuse(span, error)
            return
        self._weight += weight
        while self._weight > self._window:
            yield from self._give_out(next(iter(self._held)))

    def finish(self, trace_id: str | None = None) -> Iterator[TrajectoryItem]:
        """Yield the items of one trace that is still held, or of all traces."""
        if trace_id is None:
            for held in list(self._held):
                yield from self._give_out(held)
        elif trace_id in self._held:
            yield from self._give_out(trace_id)

    def _take_in(self, span: Span) -> int:
        self.counts.spans += 1
        says = says_something(span)
        scores = list(scores_of(span)) if says else []
        trace = self._held.get(span.trace_id)
        if trace is None:
            trace = self._held[span.trace_id] = _Trace()
        self._held.move_to_end(span.trace_id)
        trace.parents[span.span_id] = span.parent_id
        weight = SPAN_COST + (self._told_in(span, trace) if says else 0)
        trace.scores += scores
        trace.weight += weight
        return weight

    def _told_in(self, span: Span, trace: _Trace) -> int:
        """Store a span that is more than a link between others; return the size of its text."""
        if (agent := agent_of(span)) is not None:
            trace.agents[span.span_id] = agent
        if is_call(span):
            self.counts.calls += 1
            trace.calls.append(span)
            return span.weight()
        if is_tool_run(span):
            trace.runs.append(span)
            return span.weight()
        return 0

    def _give_out(self, trace_id: str) -> Iterator[TrajectoryItem]:
        trace = self._held.pop(trace_id)
        self._weight -= trace.weight
        calls = self._understood(sorted(trace.calls, key=attrgetter("start")))
        runs = self._runs_by_call(trace, calls)
        scores = self._scores_by_call(trace, calls)
        recorder = Recorder(self._make)
        step = self._steps.pop(trace_id, 0)
        for number, (call, ran, scored) in enumerate(zip(calls, runs, scores, strict=True), step):
            try:
                yield _item(
                    recorder,
                    call,
                    runs=ran,
                    scores=scored,
                    episode_id=trace_id or None,
                    step=number,
                    agent=_agent(trace, call.span),
                    reward=reward_of(scored, self._reward),
                )
            except (DataError, RecursionError) as error:
                self._refuse(call.span, error)
        if calls:
            self._steps[trace_id] = step + len(calls)
            if len(self._steps) > TRACES:
                self._steps.popitem(last=False)

    def _understood(self, spans: list[Span]) -> list[_ModelCall]:
        """Return the calls whose messages were recorded."""
        calls = []
        memory = Memory()
        for span in spans:
            try:
                said = said_in(span, memory)
            except (DataError, RecursionError) as error:
                self._refuse(span, error)
                continue
            if said is None or not (said.prompt or said.answers):
                self.counts.silent += 1
            else:
                calls.append(_ModelCall(span, said))
        return calls

    def _refuse(self, span: Span, error: Exception) -> None:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        self._told(span.line, f"span {span.span_id!r}: {reason}", error)

    def _runs_by_call(self, trace: _Trace, calls: list[_ModelCall]) -> list[list[dict[str, Any]]]:
        """Return for each call the tool runs that it requested.

        They are matched by the id of the tool call. A run without an id belongs to the latest call
        before it that requested a tool of that name.
        """
        asked: dict[str, int] = {}
        named: dict[str, list[int]] = {}
        for number, call in enumerate(calls if trace.runs else ()):
            for answer in call.said.answers:
                for tool_call in answer.get("tool_calls") or ():
                    asked[tool_call.get("id", "")] = number
                    named.setdefault(tool_call["function"]["name"], []).append(number)
        found: list[list[dict[str, Any]]] = [[] for _ in calls]
        for span in sorted(trace.runs, key=attrgetter("start")):
            run = tool_run_of(span)
            before = [
                number
                for number in named.get(str(run["name"]), ())
                if calls[number].span.start <= span.start
            ]
            place = asked.get(str(run.get("tool_call_id")), before[-1] if before else None)
            if place is None:
                self.counts.homeless += 1
            else:
                found[place].append(run)
        return found

    def _scores_by_call(self, trace: _Trace, calls: list[_ModelCall]) -> list[list[dict[str, Any]]]:
        """Return the scores of each call; a score of the whole trace goes to its last call."""
        found: list[list[dict[str, Any]]] = [[] for _ in calls]
        for score in trace.scores:
            place = _scored(trace, calls, score)
            if place is None:
                self.counts.homeless += 1
            else:
                found[place].append(score.entry)
        return found


def _item(
    recorder: Recorder,
    call: _ModelCall,
    *,
    runs: list[dict[str, Any]],
    scores: list[dict[str, Any]],
    **known: Any,  # noqa: ANN401 - further fields of the item
) -> TrajectoryItem:
    span, said = call
    entries = facts_of(span)
    reasons = [answer.get("finish_reason") for answer in said.answers]
    reason = entries.pop("finish_reason", reasons)
    if isinstance(reason, list):  # one per choice
        reason = next(filter(None, reason), None)
    if reason is not None:
        entries["finish_reason"] = reason
    answers = [
        {name: told for name, told in answer.items() if name != "finish_reason"}
        for answer in said.answers
    ]
    lists = {"tool_runs": runs, "evaluations": scores, "other_answers": answers[1:]}
    entries.update({name: found for name, found in lists.items() if found})
    return recorder.item(
        said.prompt,
        answers[0] if answers else NO_ANSWER,
        entries,
        tools=said.tools,
        timestamp=span.start / 1e9 if span.start else None,
        **known,
    )


def _scored(trace: _Trace, calls: list[_ModelCall], score: SpanScore) -> int | None:
    """Return the index of the call that a score evaluates; None if there is no such call."""
    below = None
    for place, call in enumerate(calls):
        if call.span.span_id == score.span_id:
            return place
        if score.response_id is not None:
            if call.span.attributes.get("gen_ai.response.id") == score.response_id:
                return place
        elif score.span_id in _above(trace, call.span):
            below = place
    if below is None and score.response_id is None and calls:
        return len(calls) - 1
    return below


def _agent(trace: _Trace, span: Span) -> str | None:
    if not trace.agents:
        return None
    names = (trace.agents.get(span_id) for span_id in (span.span_id, *_above(trace, span)))
    return next(filter(None, names), None)


def _above(trace: _Trace, span: Span) -> Iterable[str]:
    """Return the ancestors of a span, nearest first, each once even if the links form a cycle."""
    way: dict[str, None] = {}
    above = span.parent_id
    while above and above not in way:
        way[above] = None
        above = trace.parents.get(above)
    return way
