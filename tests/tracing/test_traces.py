"""The samples of tracing tools all tell one story: two calls, two tools at once, half a reward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.chat.conversation import prompt_of
from orbiter.train.formats import check, detect, read
from orbiter.train.formats.registry import format_of
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import NAMES

SAMPLES = Path(__file__).parents[1] / "formats/samples"
KINDS = ("otel", "langfuse", "langsmith", "atif")
TRACES = [path.name for kind in KINDS for path in sorted(SAMPLES.glob(f"{kind}_*"))]
SPANS = [name for name in TRACES if not name.startswith("atif")]
SCORED_ALONE = ("atif", "langfuse_5_api", "langfuse_5_blob", "langsmith_0.15_openai")
"""The beginnings of samples whose score is that of one call."""
EVENTS = "otel_semconv_1.30_events.jsonl"
"""Their dialect has no place for reasoning and for the tools on offer."""


def items_of(name: str) -> list[TrajectoryItem]:
    return [item for item in read(SAMPLES / name) if item.agent != "helper"]


def test_each_tool_has_its_samples() -> None:
    assert len(TRACES) == 14


@pytest.mark.parametrize("name", TRACES)
def test_a_sample_is_known_by_its_content(name: str) -> None:
    assert detect(SAMPLES / name).name == name.partition("_")[0]
    assert check(SAMPLES / name).problems == []


@pytest.mark.parametrize("name", TRACES)
def test_the_prompt_is_the_whole_chat_with_its_system_turn(name: str) -> None:
    first, second = items_of(name)
    assert prompt_of(first) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Paris and Rome?"},
    ]
    chat = prompt_of(second)
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "tool", "tool"]
    assert [chat[3]["content"], chat[4]["content"]] == ["18", "timeout"]
    assert [chat[3]["tool_call_id"], chat[4]["tool_call_id"]] == ["c1", "c2"]
    assert "Weather in Paris and Rome?" in second.state
    assert "timeout" in second.state


@pytest.mark.parametrize("name", TRACES)
def test_parallel_calls_of_tools_stand_in_openais_form(name: str) -> None:
    first, second = items_of(name)
    assert first.tool_calls == [
        {"id": id_, "type": "function", "function": {"name": "get_weather", "arguments": text}}
        for id_, text in (("c1", '{"city": "Paris"}'), ("c2", '{"city": "Rome"}'))
    ]
    assert first.action.startswith("Let me look.\n<tool_call>")
    assert prompt_of(second)[2].get("tool_calls") == first.tool_calls
    assert (second.action, second.tool_calls) == ("Paris 18, Rome unknown.", None)


@pytest.mark.parametrize("name", TRACES)
def test_reasoning_tools_agent_reward_and_time_are_carried(name: str) -> None:
    first, second = items_of(name)
    if name != EVENTS:
        assert first.metadata["reasoning"] == "two cities, two calls"
    if name not in {EVENTS, "atif_1.4.json"}:
        assert first.tools is not None
        assert first.tools[0]["function"]["name"] == "get_weather"  # type: ignore[index]
    assert [item.agent for item in (first, second)] == ["forecaster"] * 2
    # The score is that of the whole trace, so it is the reward of each of its calls.
    assert [item.reward for item in (first, second)] == [
        None if name.startswith(SCORED_ALONE) else 0.5,
        0.5,
    ]
    assert [item.step for item in (first, second)] == [0, 1]
    assert first.episode_id == second.episode_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert second.timestamp == 1780000004.0


@pytest.mark.parametrize("name", SPANS)
def test_the_runs_of_tools_stand_with_the_call_that_asked_for_them(name: str) -> None:
    first, second = items_of(name)
    runs: Any = first.metadata["tool_runs"]
    assert [run["name"] for run in runs] == ["get_weather", "get_weather"]
    assert "Rome" in str(runs[1]["arguments"])
    assert "18" in str(runs[0]["result"])
    assert (runs[1]["error"], runs[1]["seconds"]) == ("timeout", 2.0)
    assert "tool_runs" not in second.metadata


@pytest.mark.parametrize("name", SPANS)
def test_the_evaluation_is_kept_whole(name: str) -> None:
    given: Any = items_of(name)[1].metadata["evaluations"]
    assert (given[0]["name"], given[0]["score"]) == ("correctness", 0.5)


@pytest.mark.parametrize("name", SPANS)
def test_model_and_tokens_have_the_names_of_captured_items(name: str) -> None:
    first = items_of(name)[0].metadata
    assert (first["model"], first["input_tokens"], first["output_tokens"]) == ("gpt-5-2026", 20, 9)
    assert first["seconds"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_fields_is_exact(kind: str) -> None:
    """Every field and entry that comes out is listed, and every listed field does come out."""
    listed = format_of(kind).survives
    seen: set[str] = set()
    for name in TRACES:
        if name.startswith(kind):
            for item in read(SAMPLES / name):
                seen.update(_filled(item))
    if "metadata" in listed:
        assert listed == set(NAMES)
        return
    assert seen <= listed
    fields = {name for name in listed if not name.startswith("metadata.")}
    assert fields <= seen


def _filled(item: TrajectoryItem) -> Iterator[str]:
    for name in NAMES:
        if name != "metadata" and getattr(item, name) is not None:
            yield name
    yield from (f"metadata.{entry}" for entry in item.metadata)
