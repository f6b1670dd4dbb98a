from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import DataError
from orbiter.train.formats import atif, atif_read
from orbiter.train.json_files.source import Skipped, Source
from orbiter.train.trajectory import TrajectoryItem
from tests.formats import generated
from tests.trajectory.generated import items as any_items

SAMPLES = Path(__file__).parent / "samples"


def read(path: Path, skipped: list[Skipped] | None = None) -> list[TrajectoryItem]:
    source = Source(path, "raise" if skipped is None else "skip", "error", skipped or [])
    return list(atif_read.read(source))


def there_and_back(given: list[TrajectoryItem], path: Path) -> list[TrajectoryItem]:
    report = atif.write(given, path)
    assert (report.written, report.left_out) == (len(given), {})
    return read(path)


def by_id(found: list[TrajectoryItem]) -> list[str]:
    return sorted(item.id for item in found)


@settings(max_examples=60)
@given(
    given=st.lists(any_items(scored=False), min_size=1, max_size=4),
    suffix=st.sampled_from(["json", "jsonl"]),
)
def test_any_items_at_all_come_back_as_they_were(
    given: list[TrajectoryItem], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("atif") / f"x.{suffix}"
    assert by_id(there_and_back(given, path)) == by_id(given)


@settings(max_examples=40)
@given(given=generated.several_chats)
def test_chats_come_back_as_they_were(
    given: list[TrajectoryItem], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("atif") / "x.jsonl"
    assert by_id(there_and_back(given, path)) == by_id(given)


def test_every_field_of_a_full_item_survives(tmp_path: Path) -> None:
    for suffix in ("json", "jsonl"):
        (back,) = there_and_back([TrajectoryItem(**FULL)], tmp_path / f"x.{suffix}")
        assert back.to_dict() == FULL
    assert set(FULL) == atif.FORMAT.survives


def test_what_is_written_is_the_format_as_published(tmp_path: Path) -> None:
    atif.write([TrajectoryItem(**FULL)], tmp_path / "x.json")
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["schema_version"] == "ATIF-v1.7"
    assert check(written) == []
    system, user, agent = written["steps"]
    assert [step["source"] for step in (system, user, agent)] == ["system", "user", "agent"]
    assert agent["tool_calls"][0] == {
        "tool_call_id": "c1",
        "function_name": "add",
        "arguments": {"a": 1},
    }
    assert agent["metrics"]["completion_token_ids"] == [2]
    assert agent["extra"]["reward"] == 0.75
    assert agent["timestamp"] == "1970-01-01T00:00:01.500000+00:00"


@settings(max_examples=40)
@given(given=st.lists(any_items(), min_size=1, max_size=3) | generated.several_chats)
def test_only_fields_of_the_format_are_written(
    given: list[TrajectoryItem], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("atif") / "x.jsonl"
    atif.write(given, path)
    for line in path.read_text().split("\n")[:-1]:
        assert check(json.loads(line)) == []


@pytest.mark.parametrize("minor", range(4, 8))
def test_a_trajectory_read_from_any_version_comes_back_from_ours(
    minor: int, tmp_path: Path
) -> None:
    given = read(SAMPLES / f"atif_1.{minor}.json")
    assert by_id(there_and_back(given, tmp_path / "x.jsonl")) == by_id(given)


def test_copied_context_and_steps_without_a_model_are_read_but_not_learnt(tmp_path: Path) -> None:
    sample = json.loads((SAMPLES / "atif_1.7.json").read_text())
    sample["steps"][2]["is_copied_context"] = True
    (tmp_path / "x.json").write_text(json.dumps(sample))
    (only, _) = read(tmp_path / "x.json")
    assert (only.action, only.step, len(only.messages or ())) == ("Paris 18, Rome unknown.", 0, 5)
    sample["steps"][2] |= {"is_copied_context": False, "llm_call_count": 0}
    (tmp_path / "x.json").write_text(json.dumps(sample))
    assert len(read(tmp_path / "x.json")) == 2


def test_an_error_names_line_and_field(tmp_path: Path) -> None:
    good = json.dumps(json.loads((SAMPLES / "atif_1.4.json").read_text()))
    path = tmp_path / "x.jsonl"
    path.write_text(f"{good}\n{good.replace('agent', 'robot', 9)}\n{good}\n")
    with pytest.raises(DataError, match=r"x\.jsonl:2: steps\[2\]: field 'source': expected system"):
        read(path)
    skipped: list[Skipped] = []
    assert len(read(path, skipped)) == 4
    (tmp_path / "y.json").write_text(good.replace("ATIF-v1.4", "ATIF-v2.0"))
    with pytest.raises(DataError, match=r"schema_version.: expected one of ATIF-v1\.4 to"):
        read(tmp_path / "y.json")


def check(trajectory: dict[str, Any]) -> list[str]:
    """What breaks the published schema of 1.7, whose models all forbid further fields."""
    wrong = [f"root.{key}" for key in trajectory.keys() - ROOT]
    wrong += [f"agent.{key}" for key in trajectory["agent"].keys() - AGENT]
    for place, step in enumerate(trajectory["steps"], 1):
        wrong += [f"step.{key}" for key in step.keys() - STEP]
        if step["step_id"] != place or not isinstance(step["message"], str | list):
            wrong.append("step")
        if step["source"] != "agent" and step.keys() & AGENT_ONLY:
            wrong.append("agent only")
        calls: set[str] = set()
        for call in step.get("tool_calls", ()):
            calls.add(call["tool_call_id"])
            if call.keys() - CALL or not isinstance(call["arguments"], dict):
                wrong.append("call")
        wrong += check_results(step, calls)
    return wrong


def check_results(step: dict[str, Any], calls: set[str]) -> list[str]:
    results = step.get("observation", {}).get("results", ())
    wrong = [f"result.{key}" for result in results for key in result.keys() - RESULT]
    if not {result.get("source_call_id") for result in results} <= {None, *calls}:
        wrong.append("result of a call that the step did not make")
    contents = [step["message"], *(result["content"] for result in results)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    images = [part["source"] for part in parts if part["type"] == "image"]
    return wrong + [f"image {source}" for source in images if source.keys() != IMAGE]


@pytest.mark.parametrize("call_id", ["c1", "c2", "", None])
def test_a_result_of_no_call_of_its_step_names_none_and_comes_back(
    call_id: str | None, tmp_path: Path
) -> None:
    call = FULL["tool_calls"][0]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    result = {"role": "tool", "content": [image], "tool_call_id": call_id}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "So?"},
        {key: value for key, value in result.items() if value is not None},
    ]
    item = TrajectoryItem("", "Two.", 1.0, messages=messages)
    atif.write([item], tmp_path / "x.json")
    assert check(json.loads((tmp_path / "x.json").read_text())) == []
    (back,) = read(tmp_path / "x.json")
    assert (back.messages, back.action) == (messages, "Two.")


ROOT = {
    "schema_version",
    "session_id",
    "trajectory_id",
    "agent",
    "steps",
    "notes",
    "final_metrics",
    "continued_trajectory_ref",
    "extra",
    "subagent_trajectories",
}
AGENT = {"name", "version", "model_name", "tool_definitions", "extra"}
STEP = {
    "step_id",
    "timestamp",
    "source",
    "message",
    "model_name",
    "reasoning_effort",
    "reasoning_content",
    "tool_calls",
    "observation",
    "metrics",
    "llm_call_count",
    "is_copied_context",
    "extra",
}
AGENT_ONLY = {"model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics"}
CALL = {"tool_call_id", "function_name", "arguments", "extra"}
IMAGE = {"media_type", "path"}
RESULT = {"source_call_id", "content", "subagent_trajectory_ref", "extra"}
FULL: dict[str, Any] = {
    "state": "not what the messages say",
    "action": 'Let me.\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
    "reward": 0.75,
    "metadata": {"reasoning": "add them", "model": "m", "mine": {"deep": [1.0, True, None]}},
    "task_id": "t",
    "episode_id": "e",
    "step": 7,
    "agent": "solver",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ],
    "done": True,
    "timestamp": 1.5,
    "prompt_token_ids": [1],
    "token_ids": [2],
    "logprobs": [-0.5],
}


@pytest.mark.parametrize("holder", ["extra", "final_metrics"])
def test_the_score_of_a_foreign_trajectory_reaches_every_step_without_its_own(
    holder: str, tmp_path: Path
) -> None:
    call = {"tool_call_id": "c", "function_name": "find", "arguments": {"order": "1"}}
    late = {"results": [{"source_call_id": "c", "content": "late"}]}
    steps: list[dict[str, Any]] = [
        {"step_id": 1, "source": "user", "message": "Where is order 1?"},
        {"step_id": 2, "source": "agent", "message": "", "tool_calls": [call], "observation": late},
        {"step_id": 3, "source": "agent", "message": "Hm.", "extra": {"reward": 0.25}},
        {"step_id": 4, "source": "agent", "message": "It is late."},
    ]
    score = {"reward": 1.0} if holder == "extra" else {"extra": {"reward": 1.0}}
    trajectory = {
        "schema_version": "ATIF-v1.7",
        "session_id": "s",
        "agent": {"name": "a", "version": "1"},
        "steps": steps,
        holder: score,
    }
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(trajectory))
    assert [item.reward for item in read(path)] == [1.0, 0.25, 1.0]
