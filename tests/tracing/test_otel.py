from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import DataError
from orbiter.train.json_files.source import Skipped, Source
from orbiter.train.tracing import otlp
from orbiter.train.tracing import traces as otel_traces
from orbiter.train.tracing.facts import reward_of
from orbiter.train.tracing.span import AttributeReader
from tests.tracing.spans import call, read, read_spans, request, span

SCORE = {"gen_ai.evaluation.name": "quality", "gen_ai.evaluation.score.value": 0.25}
RESULT = "gen_ai.evaluation.result"


def texts(*words: str) -> list[dict[str, Any]]:
    return [{"role": "user", "parts": [{"type": "text", "content": word}]} for word in words]


@settings(max_examples=40)
@given(order=st.permutations(range(6)))
def test_steps_follow_the_starts_of_calls_whatever_the_order_of_spans(
    order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    found = read_spans(folder, *(call(str(n), start=n + 1, said=str(n)) for n in order))
    assert [(item.step, item.action) for item in found] == [(n, str(n)) for n in range(6)]


def test_a_score_goes_to_its_span_its_response_or_the_last_call_below(tmp_path: Path) -> None:
    found = read_spans(
        tmp_path,
        call("a", "agent1", 1, events=[(RESULT, SCORE)]),
        call("b", "agent1", 2),
        call("c", "agent2", 3, gen_ai__response__id="r"),
        call("d", "agent2", 4),
        span("agent1", "root", events=[(RESULT, {**SCORE, "gen_ai.evaluation.score.value": 0.5})]),
        span("agent2", "root"),
        span("e", "root", gen_ai__evaluation__name="q", gen_ai__evaluation__score__value=1,
             gen_ai__response__id="r"),
        span("root", events=[(RESULT, {**SCORE, "gen_ai.evaluation.score.value": 2})]),
    )  # fmt: skip
    assert [item.reward for item in found] == [0.25, 0.5, 1.0, 2.0]


def test_of_several_scores_the_reward_is_the_one_asked_for(tmp_path: Path) -> None:
    scores = [(RESULT, SCORE), (RESULT, {**SCORE, "gen_ai.evaluation.name": "speed"})]
    spans = [call("a", events=scores)]
    assert read_spans(tmp_path, *spans)[0].reward is None
    assert read_spans(tmp_path, *spans, reward="speed")[0].reward == 0.25
    assert reward_of([{"name": "reward", "score": 1}, {"name": "x", "score": 2}], None) == 1.0
    assert reward_of([{"name": "x", "score": float("nan")}], None) is None
    assert reward_of([{"name": "x", "score": 1}], "reward") is None


def test_a_failed_call_is_an_item_with_its_error(tmp_path: Path) -> None:
    rest = {"status": {"code": "STATUS_CODE_ERROR", "message": "429"}, "droppedAttributesCount": 3}
    given = call("a", error__type="RateLimit", rest=rest)
    given["attributes"] = [one for one in given["attributes"] if "output" not in one["key"]]
    (item,) = read_spans(tmp_path, given)
    assert (item.action, item.state) == ("", "hi")
    assert item.metadata["error"] == "429"
    assert (item.metadata["error_type"], item.metadata["dropped_attributes"]) == ("RateLimit", 3)


def test_unknown_attributes_and_further_choices_are_kept(tmp_path: Path) -> None:
    answers = [{"role": "assistant", "parts": [{"type": "text", "content": x}]} for x in "ab"]
    (item,) = read_spans(tmp_path, call("a") | {
        "attributes": [
            *call("a")["attributes"][:2],
            {"key": "gen_ai.output.messages", "value": {"stringValue": json.dumps(answers)}},
            {"key": "my.own", "value": {"arrayValue": {"values": [{"intValue": "7"}]}}},
        ]
    })  # fmt: skip
    assert item.action == "a"
    assert item.metadata["other_answers"] == [{"role": "assistant", "content": "b"}]
    assert item.metadata["attributes"] == {"my.own": [7]}


def test_messages_may_be_nested_in_otlps_own_way(tmp_path: Path) -> None:
    text = {"key": "content", "value": {"stringValue": "hi"}}
    part = {"kvlistValue": {"values": [{"key": "type", "value": {"stringValue": "text"}}, text]}}
    message = {
        "kvlistValue": {
            "values": [
                {"key": "role", "value": {"stringValue": "user"}},
                {"key": "parts", "value": {"arrayValue": {"values": [part]}}},
            ]
        }
    }
    given = span("a", gen_ai__operation__name="chat")
    nested = {"arrayValue": {"values": [message]}}
    given["attributes"].append({"key": "gen_ai.input.messages", "value": nested})
    (item,) = read_spans(tmp_path, given)
    assert item.state == "hi"


def test_messages_on_the_details_event_are_found(tmp_path: Path) -> None:
    given = call("a")
    told = {one["key"]: one["value"]["stringValue"] for one in given["attributes"]}
    name = "gen_ai.client.inference.operation.details"
    (item,) = read_spans(tmp_path, span("a", gen_ai__operation__name="chat", events=[(name, told)]))
    assert (item.state, item.action) == ("hi", "hello")


def test_an_image_becomes_openais_and_an_unknown_part_stays(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "content": "what is it?"},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "QUJD"},
        {"type": "compaction", "id": "k", "content": "older"},
    ]
    (item,) = read_spans(tmp_path, call("a", prompt=[{"role": "user", "parts": parts}]))
    assert item.messages is not None
    assert item.messages[0]["content"] == [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        parts[2],
    ]


def test_a_chat_that_grows_is_read_as_one_that_is_read_anew(tmp_path: Path) -> None:
    grown = [texts(*"abcdef"[:length]) for length in (1, 2, 2, 4, 3, 6)]
    grown.append(texts("b", "a"))
    together = read_spans(
        tmp_path, *(call(str(n), "p", n + 1, prompt=chat) for n, chat in enumerate(grown))
    )
    for number, chat in enumerate(grown):
        (alone,) = read_spans(tmp_path, call(str(number), "p", number + 1, prompt=chat))
        assert together[number].messages == alone.messages
        assert together[number].state == alone.state


def test_agents_are_named_by_the_spans_above(tmp_path: Path) -> None:
    found = read_spans(
        tmp_path,
        call("a", "tool", 1),
        call("b", "agent", 2, gen_ai__agent__name="own"),
        call("c", "loop", 3),
        span("tool", "agent"),
        span("agent", "", gen_ai__operation__name="invoke_agent", gen_ai__agent__name="boss"),
        span("loop", "loop"),
    )
    assert [item.agent for item in found] == ["boss", "own", None]


def test_traces_are_held_within_bounds_and_go_on_counting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = [(trace, n) for n in range(4) for trace in "abc"]
    spans = [call(f"{t}{n}", start=n + 1, trace=t, said=f"{t}{n}") for t, n in order]
    late = span("late", trace="a", gen_ai__operation__name="execute_tool", gen_ai__tool__name="x")
    path = tmp_path / "x.json"
    path.write_text(json.dumps(request(*spans, late)))
    refused: list[object] = []
    traces = otel_traces.Traces(lambda *told: refused.append(told), window=3000)
    source = Source(path, "raise", "error", [])
    from orbiter.train.tracing.otel import span_of

    found, known = [], AttributeReader()
    for one in otlp.read_spans(source):
        assert isinstance(one, otlp.FoundSpan)
        found += list(traces.add(span_of(one, known)))
        assert sum(map(len, (t.calls for t in traces._held.values()))) < 6
    found += list(traces.finish())
    for trace in "abc":
        steps = [(item.step, item.action) for item in found if item.episode_id == trace]
        assert steps == [(n, f"{trace}{n}") for n in range(4)]
    assert traces.counts.unmatched == 1
    assert refused == []


def test_a_file_without_calls_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spans.json:1: holds no call of a model: none of its 1 "):
        read_spans(tmp_path, span("a", http__method="GET"))
    with pytest.raises(DataError, match=r"no messages: the tracer did not record content"):
        read_spans(tmp_path, span("a", gen_ai__operation__name="chat"))


def test_some_calls_without_messages_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(read_spans(tmp_path, call("a"), span("b", gen_ai__operation__name="chat"))) == 1
    assert "1 calls have no messages" in caplog.text


def test_a_cut_off_attribute_is_named_with_its_span_and_line(tmp_path: Path) -> None:
    cut = span("abc", gen_ai__operation__name="chat", gen_ai__input__messages='[{"role": "us')
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(request(call('a')))}\n{json.dumps(request(cut))}\n")
    with pytest.raises(DataError, match=r"x.jsonl:2: span 'abc': attribute 'gen_ai.input.mes.*cut"):
        read(path)
    skipped: list[Skipped] = []
    assert len(read(path, skipped)) == 1
    assert [one.line for one in skipped] == [2]


def test_embeddings_and_agents_are_no_calls(tmp_path: Path) -> None:
    others = [call(name) for name in ("embeddings", "invoke_agent", "create_agent")]
    for one in others:
        one["attributes"][0]["value"]["stringValue"] = one["spanId"]
    assert len(read_spans(tmp_path, *others, call("a"))) == 1


def test_the_text_of_spans_in_random_order_is_the_same_items(tmp_path: Path) -> None:
    spans = [call(str(n), "p", n + 1, prompt=texts(*"abc"[: n % 3 + 1])) for n in range(9)]
    first = read_spans(tmp_path, *spans)
    random.Random(0).shuffle(spans)
    assert [item.id for item in read_spans(tmp_path, *spans)] == [item.id for item in first]
