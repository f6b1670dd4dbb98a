"""The lists of what an import of traces can fill are exact: a record that says all fills them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.formats import format_of, read
from orbiter.train.trajectory.item import NAMES
from tests.tracing.spans import request, span

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FIRST = {
    "role": "assistant",
    "name": "solver",
    "content": "2",
    "reasoning_content": "add",
    "finish_reason": "stop",
    "tool_calls": [CALL],
}
WRITTEN = {
    "model": ["gen_ai.response.model", "llm.model_name", "langfuse.observation.model.name"],
    "requested_model": ["gen_ai.request.model"],
    "provider": ["gen_ai.provider.name", "gen_ai.system", "llm.provider"],
    "response_id": ["gen_ai.response.id"],
    "finish_reason": ["gen_ai.response.finish_reasons", "llm.finish_reason"],
    "input_tokens": [
        *("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
    ],
    "output_tokens": [
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "llm.token_count.completion",
    ],
    "cached_tokens": ["gen_ai.usage.cache_read.input_tokens"],
    "reasoning_tokens": ["gen_ai.usage.reasoning.output_tokens"],
    "conversation_id": ["gen_ai.conversation.id", "session.id"],
    "user_id": ["user.id"],
    "agent_id": ["gen_ai.agent.id"],
    "workflow": ["gen_ai.workflow.name", "traceloop.workflow.name"],
    "invocation_parameters": ["llm.invocation_parameters"],
    "error_type": ["error.type"],
}
"""The names that OpenTelemetry's, OpenInference's, OpenLLMetry's and Langfuse's conventions give to
what an entry of the metadata holds, copied from their documents."""
ANSWERS = [FIRST, {"role": "assistant", "content": "two"}]


def otel() -> list[dict[str, Any]]:
    told: dict[str, Any] = {
        name.replace(".", "__"): "x" for names in WRITTEN.values() for name in names
    }
    told |= {
        "gen_ai__operation__name": "chat",
        "gen_ai__input__messages": json.dumps(CHAT),
        "gen_ai__output__messages": json.dumps(ANSWERS),
        "gen_ai__tool__definitions": json.dumps([TOOL]),
        "gen_ai__agent__name": "solver",
        "task__id": "math-7",
        "gen_ai__evaluation__name": "right",
        "gen_ai__evaluation__score__value": 1,
        "gen_ai__request__seed": 1,
        "gen_ai__usage__seconds": 2,
        "my__own": 3,
    }
    rest = {
        "status": {"code": 2, "message": "slow"},
        "droppedAttributesCount": 1,
        "endTimeUnixNano": str(3 * 10**9),
    }
    call = span("a", "above", 1, rest=rest, **told)
    run = span("b", "a", 2, gen_ai__operation__name="execute_tool", gen_ai__tool__name="f")
    (process,) = request(call, run)["resourceSpans"]
    (spans,) = process["scopeSpans"]
    service = {"key": "service.name", "value": {"stringValue": "shop"}}
    scope = {"scope": {"name": "tracer"}, **spans}
    return [{"resourceSpans": [{"resource": {"attributes": [service]}, "scopeSpans": [scope]}]}]


def langfuse() -> list[dict[str, Any]]:
    call = {
        "id": "a",
        "traceId": "t",
        "parentObservationId": "above",
        "type": "GENERATION",
        "startTime": "2026-01-01T00:00:00Z",
        "endTime": "2026-01-01T00:00:02Z",
        "level": "ERROR",
        "statusMessage": "slow",
        "input": {"messages": CHAT, "tools": [TOOL]},
        "output": ANSWERS,
        "model": "m",
        "sessionId": "s",
        "userId": "u",
        "metadata": {"mine": 1, "task_id": "math-7"},
        "modelParameters": {"seed": 1, "model": "m"},
        "usageDetails": {
            "input": 1,
            "output": 2,
            "total": 3,
            "cache_read.input_tokens": 1,
            "reasoning.output_tokens": 1,
        },
        "scores": [{"name": "right", "value": 1}],
    }
    agent = {"id": "above", "traceId": "t", "type": "AGENT", "name": "solver"}
    run = {"id": "b", "traceId": "t", "parentObservationId": "a", "type": "TOOL", "name": "f"}
    return [agent, call, {**run, "startTime": "2026-01-01T00:00:01Z"}]


def langsmith() -> list[dict[str, Any]]:
    call = {
        "id": "a",
        "trace_id": "t",
        "parent_run_id": "above",
        "run_type": "llm",
        "start_time": "2026-01-01T00:00:00",
        "end_time": "2026-01-01T00:00:02",
        "error": "slow",
        "inputs": {"messages": CHAT},
        "outputs": {"messages": ANSWERS},
        "extra": {
            "invocation_params": {"model": "m", "seed": 1, "tools": [TOOL]},
            "metadata": {
                "ls_model_name": "m",
                "ls_provider": "p",
                "thread_id": "s",
                "lc_agent_name": "solver",
                "mine": 1,
            },
        },
        "reference_example_id": "math-7",
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_cost": 0.1,
        "feedback_stats": {"right": {"avg": 1}},
    }
    run = {"id": "b", "trace_id": "t", "parent_run_id": "a", "run_type": "tool", "name": "f"}
    return [call, {**run, "start_time": "2026-01-01T00:00:01"}]


FULL = {"otel": otel, "langfuse": langfuse, "langsmith": langsmith}


@pytest.mark.parametrize("name", FULL)
def test_a_record_that_says_all_fills_what_is_listed_and_no_more(name: str, tmp_path: Path) -> None:
    path = tmp_path / "full.jsonl"
    path.write_text("\n".join(map(json.dumps, FULL[name]())))
    (item,) = read(path, name)
    filled = {field for field in NAMES if getattr(item, field) is not None} - {"metadata"}
    filled |= {f"metadata.{entry}" for entry in item.metadata}
    assert filled == format_of(name).survives


def test_what_the_fields_hold_is_what_the_record_says(tmp_path: Path) -> None:
    for name, records in FULL.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, records())))
        (item,) = read(path, name)
        assert (item.messages, item.tools, item.tool_calls) == (CHAT, [TOOL], [CALL])
        assert (item.reward, item.agent, item.metadata["reasoning"]) == (1.0, "solver", "add")
        assert item.metadata["answer"] == {"name": "solver"}
        assert item.metadata["other_answers"] == [{"role": "assistant", "content": "two"}]
        assert (item.metadata["error"], item.metadata["seconds"]) == ("slow", 2.0)


@pytest.mark.parametrize(
    ("entry", "name"), [(entry, name) for entry, names in WRITTEN.items() for name in names]
)
def test_each_attribute_alone_fills_its_entry(entry: str, name: str, tmp_path: Path) -> None:
    value: Any = 7 if entry.endswith("_tokens") else "its value"
    attributes = {
        "gen_ai__operation__name": "chat",
        "gen_ai__input__messages": json.dumps(CHAT),
        name.replace(".", "__"): value,
    }
    path = tmp_path / "span.jsonl"
    path.write_text(json.dumps(request(span("a", "", 1, **attributes))))
    (item,) = read(path, "otel")
    assert item.metadata[entry] == value
