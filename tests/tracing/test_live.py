from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode, Tracer

from orbiter.train.chat.conversation import prompt_of
from orbiter.train.formats import SpanCapture
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem, TrajectoryStrategy

CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.input.messages": json.dumps(
        [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
    ),
    "gen_ai.output.messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "text", "content": "hello"}]}]
    ),
}
SCORE: dict[str, str | float] = {
    "gen_ai.evaluation.name": "quality",
    "gen_ai.evaluation.score.value": 1.0,
}


@pytest.fixture
def dataset() -> TrajectoryDataset:
    return TrajectoryDataset()


@pytest.fixture
def capture(dataset: TrajectoryDataset) -> SpanCapture:
    return SpanCapture(dataset)


@pytest.fixture
def tracer(capture: SpanCapture) -> Iterator[Tracer]:
    provider = TracerProvider()
    provider.add_span_processor(capture)
    yield provider.get_tracer("test")
    provider.shutdown()


def test_the_calls_of_a_trace_are_captured_when_it_ends(
    tracer: Tracer, dataset: TrajectoryDataset
) -> None:
    with tracer.start_as_current_span("agent", attributes={"gen_ai.agent.name": "a"}) as agent:
        for temperature in (0.1, 0.2):
            with tracer.start_as_current_span("chat", attributes=CHAT) as span:
                span.set_attribute("gen_ai.request.temperature", temperature)
                span.set_attribute("gen_ai.response.finish_reasons", ["stop"])
        assert len(dataset) + len(dataset.waiting) == 0
        agent.add_event("gen_ai.evaluation.result", SCORE)
    first, last = dataset
    assert (first.step, last.step, last.reward, last.agent) == (0, 1, 1.0, "a")
    assert (first.reward, list(dataset.waiting)) == (1.0, [])
    assert prompt_of(last) == [{"role": "user", "content": "hi"}]
    assert (last.action, last.metadata["params"]) == ("hello", {"temperature": 0.2})
    assert last.metadata["finish_reason"] == "stop"
    assert last.metadata["instrumentation"] == "test"


def test_a_later_score_is_assigned_by_the_trace(tracer: Tracer, dataset: TrajectoryDataset) -> None:
    with tracer.start_as_current_span("chat", attributes=CHAT) as span:
        span.set_status(Status(StatusCode.ERROR, "cut"))
    trace = f"{span.get_span_context().trace_id:032x}"
    (item,) = dataset.assign_reward(trace, 0.5)
    assert (item.reward, item.metadata["error"]) == (0.5, "cut")


def test_traces_of_other_threads_do_not_mix(tracer: Tracer, dataset: TrajectoryDataset) -> None:
    one = tracer.start_span("agent")
    from opentelemetry.trace import set_span_in_context

    within = set_span_in_context(one)
    with tracer.start_as_current_span("chat", attributes=CHAT):
        pass
    tracer.start_span("chat", context=within, attributes=CHAT).end()
    assert len(dataset.waiting) == 1
    one.end()
    assert len({item.episode_id for item in dataset.waiting}) == 2


def test_what_goes_wrong_is_logged_and_counted_and_does_not_reach_the_agent(
    tracer: Tracer, capture: SpanCapture, caplog: pytest.LogCaptureFixture
) -> None:
    with tracer.start_as_current_span("chat", attributes={**CHAT, "gen_ai.input.messages": "[{"}):
        pass
    assert capture.failed == 1
    assert "attribute 'gen_ai.input.messages'" in caplog.text


def test_a_strategy_that_raises_does_not_reach_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(TrajectoryStrategy):
        def should_capture(self, item: TrajectoryItem) -> bool:
            raise KeyError("oops")

    capture = SpanCapture(TrajectoryDataset(strategy=Broken()))
    provider = TracerProvider()
    provider.add_span_processor(capture)
    with provider.get_tracer("x").start_as_current_span("chat", attributes=CHAT) as span:
        span.add_event("gen_ai.evaluation.result", SCORE)
    assert capture.failed == 1
    assert "KeyError" in caplog.text


def test_nothing_captured_is_said_at_the_end(
    dataset: TrajectoryDataset, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SpanCapture(dataset))
    with provider.get_tracer("x").start_as_current_span("GET"):
        pass
    with caplog.at_level(logging.WARNING):
        provider.shutdown()
    assert "nothing was captured: of 1 spans, 0 were model calls" in caplog.text


def test_spans_still_held_are_captured_by_a_flush(
    tracer: Tracer, capture: SpanCapture, dataset: TrajectoryDataset
) -> None:
    with tracer.start_as_current_span("agent"):
        with tracer.start_as_current_span("chat", attributes=CHAT):
            pass
        assert capture.force_flush()
        assert len(dataset.waiting) == 1


def test_the_package_does_not_load_opentelemetry() -> None:
    source = Path(__file__).parents[2] / "src/orbiter/train/tracing/live.py"
    assert "if TYPE_CHECKING:\n    from opentelemetry" in source.read_text()
