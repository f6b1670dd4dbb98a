"""What the tracers of real SDKs wrote is read as what was said; `make/` has the scripts.

Every conversation is the same: a system prompt and a question, two parallel calls, their results,
one of them with a picture where the API allows it, and an answer; whole, streamed, or refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.chat.conversation import prompt_of
from orbiter.train.chat.message import text_of
from orbiter.train.formats import check, read

SAMPLES = Path(__file__).parent / "samples"
OPENLLMETRY, OPENAI_V2, BOTH = (
    "openllmetry.jsonl",
    "openai_v2.jsonl",
    "pydantic_ai_and_logfire.jsonl",
)
FILES = sorted(path.name for path in SAMPLES.glob("*.jsonl"))
WITHOUT_REASONING = {OPENAI_V2, BOTH, "logfire.jsonl", "openinference_langchain.jsonl"}
"""Tracers that do not record the thoughts of every API."""


def episodes(file: str) -> Iterator[list[TrajectoryItem]]:
    """Yield the conversations that got an answer."""
    held: dict[object, list[TrajectoryItem]] = {}
    for item in read(SAMPLES / file):
        held.setdefault(item.episode_id, []).append(item)
    for steps in held.values():
        if "error" not in steps[0].metadata:
            yield steps


def calls_in(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]


ASKED = [("weather", {"city": "Graz"}), ("weather", {"city": "Linz"})]


@pytest.mark.parametrize("file", FILES)
def test_every_conversation_is_two_calls_of_the_model(file: str) -> None:
    steps = Counter(len(steps) for steps in episodes(file))
    if file == OPENLLMETRY:  # it leaves out a prompt with a picture: the call is left out as well
        assert steps == {2: 4, 1: 2}
        assert (
            "2 calls have an answer but no prompt and are left out" in check(SAMPLES / file).notes
        )
    else:
        assert set(steps) == {2}
    assert check(SAMPLES / file).ok


@pytest.mark.parametrize("file", FILES)
def test_an_answer_is_whole_with_its_parallel_calls_each_once(file: str) -> None:
    for first, *rest in episodes(file):
        assert first.action.startswith("I look it up.\n<tool_call>")
        assert first.action.count("<tool_call>") == 2
        assert calls_in({"tool_calls": first.tool_calls}) == ASKED
        assert "other_answers" not in first.metadata
        assert first.metadata.get("reasoning", "Two cities.") == "Two cities."
        for last in rest:
            assert (last.action, last.tool_calls) == ("Sun in Graz, rain in Linz.", None)


@pytest.mark.parametrize("file", FILES)
def test_the_prompt_is_the_whole_chat_in_openais_form(file: str) -> None:
    for first, *rest in episodes(file):
        assert prompt_of(first) == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "The weather in Graz and Linz?"},
        ]
        for last in rest:
            chat: list[Any] = prompt_of(last)
            roles = [message["role"] for message in chat]
            assert roles[:5] == ["system", "user", "assistant", "tool", "tool"]
            assert calls_in(chat[2]) == ASKED
            assert [message["tool_call_id"] for message in chat[3:5]] == ["call_graz", "call_linz"]
            assert chat[3]["content"] == "sun"
            assert text_of(chat[4]["content"]).startswith("rain")
            assert roles[5:] in ([], ["user"])


@pytest.mark.parametrize("file", sorted({*FILES} - {OPENLLMETRY}))
def test_the_next_prompt_has_the_answer_as_it_was_given(file: str) -> None:
    for first, last in episodes(file):
        assert [call["id"] for call in first.tool_calls or ()] == ["call_graz", "call_linz"]
        answer: Any = prompt_of(last)[2]
        assert answer["tool_calls"] == first.tool_calls
        if file != OPENAI_V2:  # it leaves the text beside calls out of its history
            assert answer["content"] == "I look it up."


@pytest.mark.parametrize("file", sorted({*FILES} - {OPENLLMETRY, OPENAI_V2}))
def test_a_picture_in_a_result_or_a_prompt_is_a_part(file: str) -> None:
    for _, last in episodes(file):
        contents = [message["content"] for message in prompt_of(last)]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        kinds = Counter(part["type"] for part in parts)
        # OpenInference writes "__REDACTED__" for Anthropic's pictures, so they stay as they are.
        assert kinds["image_url"] + kinds["image"] == 1


@pytest.mark.parametrize("file", sorted({*FILES} - {OPENAI_V2}))
def test_tools_are_in_openais_form(file: str) -> None:
    for steps in episodes(file):
        for item in steps:
            tools: Any = item.tools
            assert [tool["function"]["name"] for tool in tools] == ["weather"]
            assert "city" in tools[0]["function"]["parameters"]["properties"]


@pytest.mark.parametrize("file", [name for name in FILES if name not in WITHOUT_REASONING])
def test_the_thoughts_of_the_apis_that_have_them_are_kept(file: str) -> None:
    thoughts = Counter(steps[0].metadata.get("reasoning") for steps in episodes(file))
    assert thoughts["Two cities."] > 0


@pytest.mark.parametrize("file", FILES)
def test_an_error_of_the_api_is_an_item_with_the_error(file: str) -> None:
    failed = [item for item in read(SAMPLES / file) if "error" in item.metadata]
    if file in {"pydantic_ai.jsonl", BOTH}:
        assert failed == []  # pydantic-ai records no messages of a call that failed
        return
    assert failed
    for item in failed:
        assert item.action == ""
        assert "no such city" in str(item.metadata["error"])
        assert "Traceback" not in str(item.metadata["error"])


@pytest.mark.parametrize("file", sorted({*FILES} - {"langsmith_langchain.jsonl"}))
def test_the_task_that_the_root_span_names_is_the_task_of_each_step(file: str) -> None:
    if file == "langfuse_observations.jsonl":
        return  # the rows do not have the attributes of the agent's span
    for steps in episodes(file):
        names = {item.task_id for item in steps}
        assert len(names) == 1
        assert names <= {
            f"{api}{how}" for api in ("chat", "responses", "anthropic") for how in ("", " stream")
        }


def test_two_instrumentations_of_one_call_and_spans_of_a_stream_are_joined() -> None:
    assert "8 spans repeat a call that another span also reports" in check(SAMPLES / BOTH).notes[0]
    assert "6 spans repeat a call" in check(SAMPLES / "logfire.jsonl").notes[0]
    for first, _ in episodes(BOTH):
        assert first.metadata["instrumentation"] == "pydantic-ai"
        assert first.agent == "forecaster"
        runs: Any = first.metadata["tool_runs"]
        assert len(runs) == 2
