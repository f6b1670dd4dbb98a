"""Groups spans in any order by trace and makes items: an episode is a trace, a step a model call.

A trace is held until the window is full and then released as a whole: its calls by their start,
with the scores of evaluations, the runs of the tools that they called, and the names of the agents
and tasks above them. A call that two instrumentations recorded as two spans becomes one item
(`same_calls.py`). The window is bounded, and so is memory. Therefore a trace that does not fit into
the window is released in several parts, in order. A score or tool run that arrives in a later part
than its call is left out and counted in a warning.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from orbiter.train.chat.tool_calls import name_of
from orbiter.train.errors import DataError
from orbiter.train.json_files.records import decode_json
from orbiter.train.json_files.source import reason_of
from orbiter.train.tracing.dialects import Memory, content_of_call
from orbiter.train.tracing.facts import (
    SpanScore,
    agent_of,
    facts_of,
    is_call,
    is_relevant,
    is_tool_run,
    reward_of,
    score_in,
    scores_of,
    task_of,
    tool_run_of,
    unknown_form,
)
from orbiter.train.tracing.recorded import NO_ANSWER, Maker, Recorder
from orbiter.train.tracing.same_calls import ModelCall, check_names, one_per_call
from orbiter.train.tracing.span import Span, SpanEvent
from orbiter.train.trajectory import TrajectoryItem

WINDOW = 24 << 20
"""The largest total size of the traces held: in bytes of attributes if they are from a file,
otherwise in characters of text."""
TRACES = 1 << 16
"""The number of released traces whose step count is remembered."""
SPAN_COST = 512
"""The size that is added for each span, besides its text."""

Refuse = Callable[[int, str, Exception | None], None]


@dataclass(slots=True)
class _Trace:
    """The spans and scores of a trace that is being held."""

    calls: list[Span] = field(default_factory=list)
    runs: list[Span] = field(default_factory=list)
    scores: list[SpanScore] = field(default_factory=list)
    parents: dict[str, str | None] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    logs: dict[str, list[SpanEvent]] = field(default_factory=dict)
    """The events in log records, by span."""
    weight: int = 0


@dataclass(slots=True)
class Counts:
    """The numbers of spans, calls and problems seen so far."""

    spans: int = 0
    calls: int = 0
    logs: int = 0
    without_messages: int = 0
    """Calls of a model whose messages were not recorded."""
    without_prompt: int = 0
    """Calls whose answer was recorded, but not the prompt."""
    repeated: int = 0
    """Spans that repeat a call which another span also reports."""
    unknown: Counter[str] = field(default_factory=Counter[str])
    """Spans that seem to hold a model call in an unsupported form, by the form."""
    unmatched: int = 0
    """Scores and tool runs whose call was released before they arrived, or does not exist."""

    def notes(self) -> list[str]:
        """Describe the valid data that was left out."""
        counted = {
            "calls have no messages and are left out": self.without_messages,
            "calls have an answer but no prompt and are left out": self.without_prompt,
            "spans repeat a call that another span also reports, and are merged with it": (
                self.repeated
            ),
            "scores or tool runs belong to no call and are left out": self.unmatched,
        }
        notes = [f"{count} {what}" for what, count in counted.items() if count]
        return notes + [
            f"{count} spans hold a call in an unsupported form: {form}"
            for form, count in sorted(self.unknown.items())
        ]


class Traces:
    """A bounded window of open traces: takes spans and yields items."""

    def __init__(
        self,
        refuse: Refuse,
        *,
        make: Maker = TrajectoryItem,
        reward: str | None = None,
        window: int = WINDOW,
    ) -> None:
        """Create an empty window.

        Args:
            refuse: Called for every bad span with its line and the reason.
            make: Makes an item from its fields.
            reward: The name of the evaluation that is the reward; by default the one named
                "reward", or the only one.
            window: The largest total size of the traces held, in the unit of `WINDOW`.
        """
        self.counts = Counts()
        self._on_bad_span = refuse
        self._make = make
        self._reward = reward
        self._window = window
        self._weight = 0
        self._held: OrderedDict[str, _Trace] = OrderedDict()
        self._steps: OrderedDict[str, int] = OrderedDict()

    def add(self, span: Span) -> Iterator[TrajectoryItem]:
        """Add a span; yield the items of the traces that must be released to make room."""
        try:
            weight = self._accept(span)
        except (DataError, RecursionError) as error:
            self._refuse(span, error)
            return
        yield from self._make_room(weight)

    def add_log(self, trace_id: str, span_id: str, event: SpanEvent) -> Iterator[TrajectoryItem]:
        """Add a span's event from a log record; yield the items released to make room."""
        self.counts.logs += 1
        trace = self._trace(trace_id)
        if (score := score_in(event, span_id)) is not None:
            trace.scores.append(score)
        else:
            trace.logs.setdefault(span_id, []).append(event)
        weight = SPAN_COST + sum(
            len(value) if isinstance(value, str) else SPAN_COST
            for value in event.attributes.values()
        )
        trace.weight += weight
        yield from self._make_room(weight)

    def finish(self, trace_id: str | None = None) -> Iterator[TrajectoryItem]:
        """Yield the items of one trace that is still held, or of all traces."""
        if trace_id is None:
            for held_id in list(self._held):
                yield from self._release(held_id)
        elif trace_id in self._held:
            yield from self._release(trace_id)

    def _make_room(self, weight: int) -> Iterator[TrajectoryItem]:
        self._weight += weight
        while self._weight > self._window:
            # The trace that was least recently added to, which is most likely complete.
            yield from self._release(next(iter(self._held)))

    def _trace(self, trace_id: str) -> _Trace:
        """Return the trace with an id, and mark it as the most recently used."""
        trace = self._held.get(trace_id)
        if trace is None:
            trace = self._held[trace_id] = _Trace()
        self._held.move_to_end(trace_id)
        return trace

    def _accept(self, span: Span) -> int:
        self.counts.spans += 1
        # Irrelevant spans are kept as links only: a call's agent or task may be above them.
        relevant = is_relevant(span)
        # Before the trace is changed, because reading a score may fail.
        scores = list(scores_of(span)) if relevant else []
        trace = self._trace(span.trace_id)
        trace.parents[span.span_id] = span.parent_id
        weight = SPAN_COST + (self._store(span, trace) if relevant else 0)
        trace.scores += scores
        trace.weight += weight
        return weight

    def _store(self, span: Span, trace: _Trace) -> int:
        """Store a span that is more than a link between others; return the size of its text."""
        if (agent := agent_of(span)) is not None:
            trace.agents[span.span_id] = agent
        if (task := task_of(span)) is not None:
            trace.tasks[span.span_id] = task
        if is_call(span):
            self.counts.calls += 1
            trace.calls.append(span)
            return span.weight()
        if is_tool_run(span):
            trace.runs.append(span)
            return span.weight()
        if (form := unknown_form(span)) is not None:
            self.counts.unknown[form] += 1
        return 0

    def _release(self, trace_id: str) -> Iterator[TrajectoryItem]:
        trace = self._held.pop(trace_id)
        self._weight -= trace.weight
        calls = self._recorded_calls(trace)
        runs = self._runs_by_call(trace, calls)
        scores = self._scores_by_call(trace, calls)
        recorder = Recorder(self._make)
        # A trace that was released in parts continues its numbering.
        step = self._steps.pop(trace_id, 0)
        for number, (call, ran, scored) in enumerate(zip(calls, runs, scores, strict=True), step):
            try:
                yield _item(
                    recorder,
                    call,
                    runs=ran,
                    scores=scored.entries(),
                    episode_id=trace_id or None,
                    step=number,
                    task_id=_task(trace, call.span),
                    agent=_named_above(trace, trace.agents, call.span),
                    reward=scored.reward(self._reward),
                )
            except (DataError, RecursionError) as error:
                self._refuse(call.span, error)
        if calls:
            self._steps[trace_id] = step + len(calls)
            if len(self._steps) > TRACES:
                self._steps.popitem(last=False)

    def _recorded_calls(self, trace: _Trace) -> list[ModelCall]:
        """Return the calls whose messages were recorded, each once, in the order of their start."""
        calls = []
        # One for each release: what it remembers must not outlive the window.
        memory = Memory()
        for span in sorted(trace.calls, key=attrgetter("start")):
            if logged := trace.logs.get(span.span_id):
                # Messages in log records arrive apart from their span.
                span.events = [*span.events, *logged]
            try:
                content = content_of_call(span, memory)
                if content is not None:
                    check_names(content.answers)
            except (DataError, RecursionError) as error:
                self._refuse(span, error)
                continue
            if content is None or not (content.prompt or content.answers):
                self.counts.without_messages += 1
                if (form := unknown_form(span)) is not None:
                    self.counts.unknown[form] += 1
            else:
                calls.append(ModelCall(span, content))
        dividing = {span.span_id for span in trace.runs} | trace.agents.keys()
        once = one_per_call(calls, trace.parents, dividing)
        self.counts.repeated += len(calls) - len(once)
        # After merging, since the prompt may have been on the other span.
        whole = [call for call in once if call.content.prompt]
        self.counts.without_prompt += len(once) - len(whole)
        return whole

    def _refuse(self, span: Span, error: Exception) -> None:
        self._on_bad_span(span.line, f"span {span.span_id!r}: {reason_of(error)}", error)

    def _runs_by_call(self, trace: _Trace, calls: list[ModelCall]) -> list[list[dict[str, Any]]]:
        """Return for each call the tool runs that it requested.

        They are matched by the id of the tool call. A run without an id belongs to the latest call
        before it that requested a tool of that name.
        """
        by_call_id: dict[str, int] = {}
        by_tool: dict[str, list[int]] = {}
        for number, call in enumerate(calls if trace.runs else ()):
            for answer in call.content.answers:
                for tool_call in answer.get("tool_calls") or ():
                    # An id that two calls share (some servers reuse them) goes to the later one.
                    by_call_id[tool_call.get("id", "")] = number
                    by_tool.setdefault(name_of(tool_call), []).append(number)
        runs: list[list[dict[str, Any]]] = [[] for _ in calls]
        for span in sorted(trace.runs, key=attrgetter("start")):
            run = tool_run_of(span)
            before = [
                number
                for number in by_tool.get(str(run["name"]), ())
                if calls[number].span.start <= span.start
            ]
            index = by_call_id.get(str(run.get("tool_call_id")), before[-1] if before else None)
            if index is None:
                self.counts.unmatched += 1
            else:
                runs[index].append(run)
        return runs

    def _scores_by_call(self, trace: _Trace, calls: list[ModelCall]) -> list[_Scores]:
        """Return the scores of each call; an enclosing span's score counts for every call in it."""
        scores = [_Scores() for _ in calls]
        above = [list(_above(trace, call.span)) for call in calls]
        for score in trace.scores:
            scored = _scored(calls, above, score)
            if not scored:
                self.counts.unmatched += 1
            for index, distance in scored:
                scores[index].by_distance.setdefault(distance, []).append(score.entry)
        return scores


@dataclass(slots=True)
class _Scores:
    """The scores of a call, by the number of spans between it and what was scored."""

    by_distance: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def entries(self) -> list[dict[str, Any]]:
        """Return all scores, those of the call itself first."""
        return [
            entry for distance in sorted(self.by_distance) for entry in self.by_distance[distance]
        ]

    def reward(self, wanted: str | None) -> float | None:
        """Return the reward: the one given by the scores of the nearest span."""
        for distance in sorted(self.by_distance):
            # The nearest score is the most specific: a call's own before that of its agent.
            if (reward := reward_of(self.by_distance[distance], wanted)) is not None:
                return reward
        return None


def _item(
    recorder: Recorder,
    call: ModelCall,
    *,
    runs: list[dict[str, Any]],
    scores: list[dict[str, Any]],
    **known: Any,  # noqa: ANN401 - further fields of the item
) -> TrajectoryItem:
    span, content = call.span, call.content
    entries = facts_of(span)
    # Facts that only the other instrumentation recorded, such as the token counts.
    for other in call.also:
        for name, fact in facts_of(other).items():
            if name not in _OF_SPAN:
                entries.setdefault(name, fact)
    reasons = [answer.get("finish_reason") for answer in content.answers]
    reason = _reason_in(entries.pop("finish_reason", reasons))
    if isinstance(reason, list):  # one per choice
        reason = next(filter(None, reason), None)
    if reason is not None:
        entries["finish_reason"] = reason
    answers = [
        {name: value for name, value in answer.items() if name != "finish_reason"}
        for answer in content.answers
    ]
    lists = {"tool_runs": runs, "evaluations": scores, "other_answers": answers[1:]}
    entries.update({name: entry for name, entry in lists.items() if entry})
    return recorder.item(
        content.prompt,
        answers[0] if answers else NO_ANSWER,
        entries,
        tools=content.tools,
        timestamp=span.start / 1e9 if span.start else None,
        **known,
    )


def _reason_in(value: object) -> object:
    """Return a finish reason; some tracers record the list of them as JSON text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return decode_json(value)
        except DataError:
            return value
    return value


def _scored(
    calls: list[ModelCall], above: list[list[str]], score: SpanScore
) -> list[tuple[int, int]]:
    """Return the indices of the calls that a score is about, with their distance to its span."""
    for index, call in enumerate(calls):
        if score.span_id in {call.span.span_id, *(span.span_id for span in call.also)}:
            return [(index, 0)]
        if score.response_id is not None and (
            call.span.attributes.get("gen_ai.response.id") == score.response_id
        ):
            return [(index, 0)]
    if score.response_id is not None:
        return []
    below = [
        (index, above[index].index(score.span_id) + 1)
        for index in range(len(calls))
        if score.span_id in above[index]
    ]
    # A score on a span that encloses nothing here, such as the trace itself, is about all calls.
    return below or [(index, len(above[index]) + 1) for index in range(len(calls))]


def _task(trace: _Trace, span: Span) -> str | None:
    """Return the task of a call, named by a span above it or by the trace's only task name."""
    task = _named_above(trace, trace.tasks, span)
    named = set(trace.tasks.values())
    # Some tracers put the task on a sibling; with one name there is no doubt.
    return named.pop() if task is None and len(named) == 1 else task


def _named_above(trace: _Trace, names: dict[str, str], span: Span) -> str | None:
    """Return the name that a span or the nearest one above it has."""
    if not names:
        return None
    candidates = (names.get(span_id) for span_id in (span.span_id, *_above(trace, span)))
    return next(filter(None, candidates), None)


def _above(trace: _Trace, span: Span) -> Iterable[str]:
    """Return the ancestors of a span, nearest first, each once even if the links form a cycle."""
    way: dict[str, None] = {}
    above = span.parent_id
    while above and above not in way:
        way[above] = None
        above = trace.parents.get(above)
    return way


_OF_SPAN = frozenset(
    {"span_id", "parent_span_id", "instrumentation", "attributes", "error", "seconds"}
)
"""Facts about a span itself, which say nothing about the call that it reports."""
