"""One model call is one item, however many spans report it; unsupported forms are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.errors import DataError
from orbiter.train.formats import check, read
from tests.tracing.spans import call, read_spans, request, span

CALL: dict[str, Any] = {"type": "tool_call", "id": "c1", "name": "add", "arguments": {"a": 1}}
RUN = {"gen_ai__operation__name": "execute_tool", "gen_ai__tool__name": "add"}


def evaluated(value: float, name: str = "quality") -> list[tuple[str, dict[str, Any]]]:
    told = {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": value}
    return [("gen_ai.evaluation.result", told)]


def actions(items: list[TrajectoryItem]) -> list[str]:
    return [item.action for item in items]


def write(path: Path, *requests: object) -> Path:
    path.write_text("\n".join(map(json.dumps, requests)))
    return path


def test_a_call_inside_a_call_is_the_same_one(tmp_path: Path) -> None:
    wrapper = span("between", "outer", 2)
    items = read_spans(
        tmp_path,
        call("outer", start=1, said="5"),
        wrapper,
        call("inner", "between", 3, said="five"),
        call("other", start=9, said="6"),
    )
    assert actions(items) == ["5", "6"]
    assert [item.step for item in items] == [0, 1]


def test_three_layers_are_one_item(tmp_path: Path) -> None:
    items = read_spans(
        tmp_path,
        call("a", start=1, said="5"),
        call("b", "a", 2, said="5"),
        call("c", "b", 3, said="5"),
    )
    assert actions(items) == ["5"]


def test_the_inner_call_counts_if_the_outer_one_has_no_content(tmp_path: Path) -> None:
    outer = span("outer", start=1, gen_ai__operation__name="chat", gen_ai__request__seed=7)
    (item,) = read_spans(tmp_path, outer, call("inner", "outer", 2, said="5"))
    assert item.action == "5"


def test_the_inner_span_tells_what_the_outer_one_does_not(tmp_path: Path) -> None:
    inner = call("inner", "outer", 2, said="5", gen_ai__response__id="r1")
    items = read_spans(tmp_path, call("outer", start=1, said="5"), inner)
    assert [item.metadata["response_id"] for item in items] == ["r1"]
    assert items[0].metadata["span_id"] == "outer"


def test_a_score_of_the_inner_span_is_one_of_the_call(tmp_path: Path) -> None:
    inner = call("inner", "outer", 2, said="5", events=evaluated(0.25))
    (item,) = read_spans(tmp_path, call("outer", start=1, said="5"), inner)
    assert item.reward == 0.25


@pytest.mark.parametrize(
    "between", [RUN, {"gen_ai__operation__name": "invoke_agent", "gen_ai__agent__name": "helper"}]
)
def test_a_call_below_a_tool_or_an_agent_inside_a_call_is_another_one(
    between: dict[str, Any], tmp_path: Path
) -> None:
    items = read_spans(
        tmp_path,
        call("outer", start=1, said="5"),
        span("between", "outer", 2, **between),
        call("inner", "between", 3, said="5"),
    )
    assert actions(items) == ["5", "5"]


def test_attempts_that_differ_stay_and_failed_ones_too(tmp_path: Path) -> None:
    failed = {"code": 2, "message": "overloaded"}
    items = read_spans(
        tmp_path,
        call("outer", start=1, said="5"),
        span("first", "outer", 2, gen_ai__operation__name="chat",
             gen_ai__input__messages='[{"role": "user", "parts": []}]',
             rest={"status": failed}),
        call("second", "outer", 3, said="4"),
        call("third", "outer", 4, said="5"),
    )  # fmt: skip
    assert actions(items) == ["5", "", "4"]


def test_the_first_span_of_a_stream_is_joined_to_the_one_with_the_answer(tmp_path: Path) -> None:
    begun = call("begun", "root", 1)
    begun["attributes"] = [a for a in begun["attributes"] if "output" not in a["key"]]
    ended = call("ended", "root", 2, said="5")
    items = read_spans(tmp_path, begun, ended)
    assert actions(items) == ["5"]
    assert "1 spans repeat a call" in check(tmp_path / "spans.json").notes[0]
    apart = read_spans(tmp_path, begun, call("ended", "elsewhere", 2, said="5"))
    assert actions(apart) == ["", "5"]


def scoped(name: str, *spans: dict[str, Any]) -> dict[str, Any]:
    return {"scopeSpans": [{"scope": {"name": name}, "spans": list(spans)}]}


@pytest.mark.parametrize(
    ("second", "times", "said", "count"),
    [
        ("sdk", (2, 3), "5", 1),
        ("sdk", (2, 3), "6", 2),  # another answer
        ("sdk", (2, 6), "5", 2),  # ends later, so it does not run within the other
        ("framework", (2, 3), "5", 2),  # the same instrumentation: two calls at once
    ],
)
def test_a_span_beside_the_one_that_it_runs_within_is_the_same_call(
    second: str, times: tuple[int, int], said: str, count: int, tmp_path: Path
) -> None:
    begin, end = times
    outer = call("outer", "root", 1, said="5", rest={"endTimeUnixNano": str(5 * 10**9)})
    inner = call("inner", "root", begin, said=said, rest={"endTimeUnixNano": str(end * 10**9)})
    spans = [scoped("framework", outer), scoped(second, inner)]
    (tmp_path / "a.json").write_text(json.dumps({"resourceSpans": spans}))
    assert len(list(read(tmp_path / "a.json"))) == count


def test_two_equal_calls_beside_each_other_are_two(tmp_path: Path) -> None:
    items = read_spans(tmp_path, call("a", "root", 1, said="5"), call("b", "root", 2, said="5"))
    assert actions(items) == ["5", "5"]


def test_a_call_without_a_name_is_refused_by_its_span(tmp_path: Path) -> None:
    nameless = {"role": "assistant", "parts": [{**CALL, "name": ""}]}
    with pytest.raises(DataError, match=r"span 'a': a tool call in the answer has no name .*'c1'"):
        read_spans(tmp_path, call("a") | {
            "attributes": request(span("x", gen_ai__operation__name="chat",
                gen_ai__input__messages='[{"role": "user", "parts": []}]',
                gen_ai__output__messages=json.dumps([nameless])))
            ["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"],
        })  # fmt: skip


def test_an_answer_without_a_prompt_is_left_out_and_counted(tmp_path: Path) -> None:
    lone = call("lone", start=2, said="6")
    lone["attributes"] = [a for a in lone["attributes"] if "input" not in a["key"]]
    items = read_spans(tmp_path, call("whole", start=1, said="5"), lone)
    assert actions(items) == ["5"]
    assert "1 calls have an answer but no prompt" in check(tmp_path / "spans.json").notes[0]


@pytest.mark.parametrize(
    ("attributes", "form"),
    [
        ({"ai__prompt__messages": "[]"}, r"ai.prompt.messages \(Vercel AI SDK\)"),
        ({"gcp__vertex__agent__llm_request": "{}"}, "Google ADK"),
        ({"mlflow__spanInputs": "{}"}, "MLflow"),
        ({"gen_ai__operation__name": "responses"}, "gen_ai.operation.name 'responses'"),
    ],
)
def test_a_form_that_is_not_read_is_reported_by_name(
    attributes: dict[str, Any], form: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"unsupported forms: .*{form}"):
        read_spans(tmp_path, span("a", **attributes))
    items = read_spans(tmp_path, call("b", said="5"), span("a", **attributes))
    assert actions(items) == ["5"]
    notes = check(tmp_path / "spans.json").notes
    assert "1 spans hold a call in an unsupported form" in notes[0]


def test_a_score_above_calls_is_the_reward_of_each_and_a_nearer_one_wins(tmp_path: Path) -> None:
    items = read_spans(
        tmp_path,
        span("root", start=1, gen_ai__agent__name="boss", events=evaluated(1.0)),
        call("a", "root", 2, said="1"),
        span("below", "root", 3, gen_ai__agent__name="helper", events=evaluated(0.5)),
        call("b", "below", 4, said="2"),
        call("c", "root", 5, said="3", events=evaluated(0.0)),
    )
    assert [(item.action, item.reward) for item in items] == [("1", 1.0), ("2", 0.5), ("3", 0.0)]
    assert [len(item.metadata["evaluations"]) for item in items] == [1, 2, 2]  # type: ignore[arg-type]


def test_filter_by_score_keeps_the_tool_calls_of_a_good_episode(tmp_path: Path) -> None:
    from orbiter.train.synthesis import filter_by_score

    asked = {"role": "assistant", "parts": [CALL]}
    first = call("a", "root", 2)
    for attribute in first["attributes"]:
        if attribute["key"] == "gen_ai.output.messages":
            attribute["value"] = {"stringValue": json.dumps([asked])}
    items = read_spans(
        tmp_path,
        span("root", start=1, events=evaluated(1.0)),
        first,
        call("b", "root", 3, said="5"),
    )
    kept = filter_by_score(items, 0.5)
    assert [bool(item.tool_calls) for item in kept] == [True, False]


def test_the_task_of_a_root_span_is_that_of_its_steps(tmp_path: Path) -> None:
    items = read_spans(
        tmp_path, call("a", "mid", 2), span("mid", "root", 1), span("root", task__id="math-7")
    )
    assert [item.task_id for item in items] == ["math-7"]
    nearer = read_spans(
        tmp_path, span("root", task__id="math"), call("a", "root", 2, task__id="math-8")
    )
    assert [item.task_id for item in nearer] == ["math-8"]


def log(span_id: str, name: str, body: dict[str, Any], *, named: bool = True) -> dict[str, Any]:
    values = [{"key": key, "value": {"stringValue": value}} for key, value in body.items()]
    record: dict[str, Any] = {
        "traceId": "t", "spanId": span_id, "body": {"kvlistValue": {"values": values}}
    }  # fmt: skip
    if named:
        record["eventName"] = name
    else:
        record["attributes"] = [{"key": "event.name", "value": {"stringValue": name}}]
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_messages_in_log_records_are_those_of_their_span(
    named: bool, before: bool, tmp_path: Path
) -> None:
    spans = request(span("a", trace="t", gen_ai__operation__name="chat"))
    logs = [
        log("a", "gen_ai.user.message", {"content": "2 + 3?"}, named=named),
        log("a", "gen_ai.choice", {"message": '{"content": "5"}', "finish_reason": "stop"},
            named=named),
        log("a", "gen_ai.evaluation", {"gen_ai.evaluation.score.label": "good"}, named=named),
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", *([*logs, spans] if before else [spans, *logs]))
    (item,) = read(path)
    assert (item.state, item.action, item.metadata["finish_reason"]) == ("2 + 3?", "5", "stop")
    assert item.metadata["evaluations"] == [{"label": "good"}]


def test_a_file_of_logs_alone_says_where_the_calls_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", log("a", "gen_ai.user.message", {"content": "a"}))
    with pytest.raises(DataError, match=r"1 log records and no span: .* write both into one file"):
        list(read(path))
