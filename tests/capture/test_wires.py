"""Answers in the shapes that the three APIs document, and in those that servers get wrong."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from orbiter.train import TrajectoryDataset, TrajectoryItem
from orbiter.train.capture import record
from orbiter.train.errors import DataError

Json = Any
USER = [{"role": "user", "content": "hi"}]
CHAT = "http://model.test/v1/chat/completions"
RESPONSES = "http://model.test/v1/responses"
MESSAGES = "http://model.test/v1/messages"
BODIES: dict[str, Json] = {
    CHAT: {"model": "m", "messages": USER},
    RESPONSES: {"model": "m", "input": "hi"},
    MESSAGES: {"model": "m", "max_tokens": 9, "messages": USER},
}
SSE = "text/event-stream"


def stream(events: Sequence[Json | str], *, done: bool = False) -> bytes:
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {text}\n\n" for text in [*texts, *(["[DONE]"] if done else [])]).encode()


def captured(
    url: str,
    answer: Json | bytes,
    body: Json = None,
    *,
    kind: str = "application/json",
    headers: dict[str, str] | None = None,
) -> TrajectoryItem:
    """The one item of a request that is answered so."""
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    sent = {"content-type": kind, **(headers or {})}
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers=sent, stream=httpx2.ByteStream(content))
    )
    dataset = TrajectoryDataset()
    with record(dataset), httpx2.Client(transport=transport) as client:
        client.post(url, json=BODIES[url] if body is None else body)
    (item,) = dataset.waiting
    return item


def calls_of(item: TrajectoryItem) -> list[tuple[str, str, str]]:
    made = []
    for call in item.tool_calls or ():
        held: Json = call.get("function") or call["custom"]
        made.append((call["id"], held["name"], held.get("arguments", held.get("input"))))
    return made  # type: ignore[return-value]


def piece(delta: Json, finish: str | None = None) -> Json:
    return {
        "id": "c",
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def calls(*deltas: Json) -> list[Json]:
    return [*(piece({"tool_calls": [delta]}) for delta in deltas), piece({}, "tool_calls")]


def fn(name: str | None = None, arguments: str | None = None) -> Json:
    given = {"name": name, "arguments": arguments}
    return {key: value for key, value in given.items() if value is not None}


TWO = [("a", "f", '{"x":1}'), ("b", "g", "{}")]
ONE = [("a", "f", '{"x":1}')]


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        pytest.param(
            [
                {"index": 0, "id": "a", "function": fn("f", '{"x":')},
                {"index": 0, "function": fn(arguments="1}")},
                {"index": 0, "id": "b", "function": fn("g", "{")},
                {"index": 0, "function": fn(arguments="}")},
            ],
            TWO,
            id="index 0 twice, in pieces",
        ),
        pytest.param(
            [
                {"id": "a", "function": fn("f", "")},
                {"function": fn(arguments='{"x":')},
                {"function": fn(arguments="1}")},
                {"id": "b", "function": fn("g", "{}")},
            ],
            TWO,
            id="no index",
        ),
        pytest.param(
            [
                {"index": 0, "id": "a", "function": fn("f", '{"x":')},
                {"index": 0, "id": "a", "function": fn("f", "1}")},
            ],
            ONE,
            id="id and name in every delta",
        ),
        pytest.param(
            [
                {"index": 0, "id": "a", "function": fn("f", '{"x":')},
                {"index": 0, "id": "new", "function": fn(arguments="1}")},
            ],
            ONE,
            id="a new id in every delta",
        ),
        pytest.param(
            [
                {"index": 1, "id": "b", "function": fn("g", "{")},
                {"index": 0, "id": "a", "function": fn("f", '{"x":')},
                {"index": 1, "function": fn(arguments="}")},
                {"index": 0, "function": fn(arguments="1}")},
            ],
            TWO,
            id="interleaved, the second first",
        ),
        pytest.param(
            [
                {"index": 0, "function": fn("f")},
                {"index": 0, "id": "a", "function": fn(None, '{"x":1}')},
            ],
            ONE,
            id="the id after the name",
        ),
    ],
)
def test_calls_of_a_stream_are_told_apart(deltas: list[Json], expected: object) -> None:
    item = captured(CHAT, stream(calls(*deltas), done=True), kind=SSE)
    assert calls_of(item) == expected
    assert "error" not in item.metadata


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/octet-stream"])
@pytest.mark.parametrize(
    "noise", ["", ": comment\n\n", "data: ping\n\n", "data: {}\n\n", "data:\n\n", "data: null\n\n"]
)
def test_a_stream_is_read_whatever_it_is_labelled_and_kept_alive_with(
    kind: str, noise: str
) -> None:
    events = stream([piece({"content": "hel"}), piece({"content": "lo"}, "stop")], done=True)
    body = noise.encode() + events.replace(b"\n\n", b"\n\n" + noise.encode(), 1)
    item = captured(CHAT, body, kind=kind)
    assert (item.action, item.metadata.get("error")) == ("hello", None)


def test_a_whole_answer_that_is_labelled_as_a_stream_is_read() -> None:
    answer = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    assert captured(CHAT, answer, kind=SSE).action == "hello"


def test_a_stream_that_ends_regularly_without_a_reason_is_whole() -> None:
    item = captured(CHAT, stream([piece({"content": "hello"})], done=True), kind=SSE)
    assert (item.action, item.metadata.get("error")) == ("hello", None)


def test_a_stream_that_breaks_off_says_so() -> None:
    item = captured(CHAT, stream([piece({"content": "hel"})]), kind=SSE)
    assert (item.action, "error" in item.metadata) == ("hel", True)


def test_a_stream_without_any_answer_is_no_item() -> None:
    with pytest.raises(DataError, match="without an answer"):
        captured(CHAT, stream([], done=True), kind=SSE)


def test_a_compressed_stream_is_read() -> None:
    body = gzip.compress(stream([piece({"content": "hello"}, "stop")], done=True))
    item = captured(CHAT, body, kind=SSE, headers={"content-encoding": "gzip"})
    assert (item.action, item.metadata.get("error")) == ("hello", None)


# Calls that are not functions.


def test_a_custom_and_a_legacy_call_of_a_chat_are_kept() -> None:
    custom = {"id": "a", "type": "custom", "custom": {"name": "exec", "input": "ls [1]"}}
    answer = {"choices": [{"finish_reason": "tool_calls", "message": {"tool_calls": [custom]}}]}
    assert calls_of(captured(CHAT, answer)) == [("a", "exec", "ls [1]")]
    deltas = [
        {"index": 0, "id": "a", "type": "custom", "custom": {"name": "exec", "input": "l"}},
        {"index": 0, "custom": {"input": "s"}},
    ]
    streamed = captured(CHAT, stream(calls(*deltas), done=True), kind=SSE)
    assert calls_of(streamed) == [("a", "exec", "ls")]
    legacy = [
        piece({"function_call": {"name": "f", "arguments": ""}}),
        piece({"function_call": {"arguments": "{}"}}, "function_call"),
    ]
    made = captured(CHAT, stream(legacy, done=True), kind=SSE)
    assert calls_of(made) == [("f", "f", "{}")]


def test_a_legacy_history_is_one_of_calls_and_answers() -> None:
    history = [
        *USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "5"},
    ]
    answer = {"choices": [{"finish_reason": "stop", "message": {"content": "5"}}]}
    item = captured(CHAT, answer, {"model": "m", "messages": history})
    assert item.state.endswith("</tool_call>\n\n[tool f]\n5")


def test_a_response_keeps_each_kind_of_call() -> None:
    output = [
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "*** Begin"},
        {"type": "local_shell_call", "call_id": "s", "action": {"command": ["ls"]}},
        {"type": "web_search_call", "id": "w", "action": {"query": "graz"}, "status": "completed"},
        {"type": "mcp_call", "id": "m", "name": "lookup", "arguments": "{}", "output": "5"},
    ]
    item = captured(RESPONSES, {"id": "r1", "status": "completed", "output": output})
    assert calls_of(item) == [
        ("c", "patch", "*** Begin"),
        ("s", "local_shell", '{"command": ["ls"]}'),
    ]
    served: Json = item.metadata["server_calls"]
    assert [(call["name"], call["raw"][0]["type"]) for call in served] == [
        ("web_search", "web_search_call"),
        ("lookup", "mcp_call"),
    ]
    assert item.metadata["reasoning"] == "Hm."


def test_the_output_of_a_custom_call_is_a_tools_answer() -> None:
    history = [
        {"role": "user", "content": "go"},
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
    ]
    answer = {"id": "r", "status": "completed", "output": []}
    body = {"model": "m", "input": history}
    item = captured(RESPONSES, answer, body)
    assert [message["role"] for message in item.messages or ()] == ["user", "assistant", "tool"]
    assert item.state.endswith("[tool patch]\ndone")


def test_what_was_streamed_counts_if_the_last_event_is_empty() -> None:
    call = {"type": "function_call", "id": "f1", "call_id": "c", "name": "f", "arguments": ""}
    whole = {"id": "r", "status": "completed"}
    events = [
        {"type": "response.created", "response": {"id": "r", "status": "in_progress"}},
        {"type": "response.output_text.delta", "output_index": 0, "item_id": "m1", "delta": "He"},
        {"type": "response.output_text.delta", "output_index": 0, "item_id": "m1", "delta": "llo"},
        {"type": "response.output_item.added", "output_index": 1, "item": call},
        {
            "type": "response.function_call_arguments.delta",
            "output_index": 1,
            "item_id": "f1",
            "delta": "{}",
        },
        {
            "type": "response.completed",
            "response": {**whole, "output": []},
        },
    ]
    item = captured(RESPONSES, stream(events), kind=SSE)
    assert item.action.startswith("Hello\n<tool_call>")
    assert calls_of(item) == [("c", "f", "{}")]
    assert item.metadata["finish_reason"] == "completed"


@pytest.mark.parametrize("index", [0, None])
def test_items_of_a_response_that_share_an_index_stay_apart(index: int | None) -> None:
    where = {} if index is None else {"output_index": index}
    events: list[Json] = []
    for name in ("f", "g"):
        item = {"type": "function_call", "id": name, "call_id": name, "name": name}
        events += [
            {"type": "response.output_item.added", **where, "item": {**item, "arguments": ""}},
            {"type": "response.output_item.done", **where, "item": {**item, "arguments": "{}"}},
        ]
    done = {"type": "response.completed", "response": {"id": "r", "status": "completed"}}
    made = captured(RESPONSES, stream([*events, done]), kind=SSE)
    assert calls_of(made) == [("f", "f", "{}"), ("g", "g", "{}")]


def test_an_anthropic_answer_keeps_server_tools_and_counts_cached_input() -> None:
    blocks = [
        {"type": "text", "text": "I look."},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "graz"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"url": "u"}]},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
    ]
    usage = {
        "input_tokens": 3,
        "cache_read_input_tokens": 40,
        "cache_creation_input_tokens": 7,
        "output_tokens": 5,
    }
    answer = {"id": "m", "model": "m", "content": blocks, "stop_reason": "tool_use", "usage": usage}
    item = captured(MESSAGES, answer)
    assert calls_of(item) == [("t", "f", '{"x": 1}')]
    assert item.metadata["server_calls"] == [
        {"name": "web_search", "arguments": {"query": "graz"}, "raw": blocks[1:3]}
    ]
    counts = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")
    assert [item.metadata[name] for name in counts] == [50, 40, 7, 5]


def test_an_anthropic_stream_is_the_same_as_its_whole_answer() -> None:
    events = [
        {
            "type": "message_start",
            "message": {"id": "m", "content": [], "usage": {"input_tokens": 3}},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": "Hm."},
        },
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        },
        {"type": "ping"},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"x": 1}'},
        },
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 5},
        },
        {"type": "message_stop"},
    ]
    item = captured(MESSAGES, stream(events), kind=SSE)
    assert calls_of(item) == [("t", "f", '{"x": 1}')]
    assert item.metadata["reasoning"] == "Hm."
    assert (item.metadata["input_tokens"], item.metadata["output_tokens"]) == (3, 5)


def test_an_image_in_a_tools_result_is_kept() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    history = [
        *USER,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    answer = {"id": "m", "content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn"}
    item = captured(MESSAGES, answer, {"model": "m", "max_tokens": 9, "messages": history})
    assert (item.messages or [])[-1]["content"] == [image]


# Which requests go to a model.


@pytest.mark.parametrize(
    ("url", "body", "answer"),
    [
        ("http://web.test/v1/threads/t/messages", {"role": "user", "content": "x"}, {"id": "m"}),
        ("http://web.test/v1/messages", {"to": "someone", "text": "x"}, {"ok": True}),
        ("http://chat.test/rooms/1/messages", {"messages": [{"text": "x"}]}, {"ok": True}),
        ("http://chat.test/rooms/1/messages", {"model": "m", "messages": USER}, {"ok": True}),
        ("http://forms.test/forms/1/responses", {"input": "x"}, {"ok": True}),
        ("http://forms.test/forms/1/responses", {"answers": [1]}, {"ok": True}),
    ],
)
def test_a_web_service_with_a_path_like_a_models_is_none(
    url: str, body: Json, answer: Json, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="no known model API"):
        captured(url, answer, body)
    assert not caplog.records


# Answers that come later, and conversations that began elsewhere.


def test_a_background_response_is_completed_when_it_is_fetched() -> None:
    queued = {"id": "r1", "status": "queued", "output": None}
    message = {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}
    whole = {"id": "r1", "status": "completed", "output": [message]}
    polled = iter([queued, {**queued, "status": "in_progress"}, whole])
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=next(polled)))
    dataset = TrajectoryDataset()
    with record(dataset) as episode, httpx2.Client(transport=transport) as client:
        client.post(RESPONSES, json={"model": "m", "input": "hi", "background": True})
        (item,) = dataset.waiting
        assert (item.action, "not complete" in str(item.metadata["error"])) == ("", True)
        client.get(f"{RESPONSES}/r1")
        client.get(f"{RESPONSES}/r1")
    (item,) = dataset.waiting
    assert (item.action, item.metadata["finish_reason"]) == ("Hello", "completed")
    assert "error" not in item.metadata
    assert episode.steps == 1


def test_a_background_response_that_nobody_fetches_stays_marked() -> None:
    item = captured(RESPONSES, {"id": "r1", "status": "queued", "output": []})
    assert "not complete" in str(item.metadata["error"])


def test_a_conversation_that_began_outside_is_marked() -> None:
    message = {"type": "message", "content": [{"type": "output_text", "text": "ok"}]}
    answer = {"id": "r2", "status": "completed", "output": [message]}
    for field, value in (("previous_response_id", "r1"), ("conversation", {"id": "r1"})):
        body = {"model": "m", "input": "more", field: value}
        assert captured(RESPONSES, answer, body).metadata["history_missing"] == "r1"
    assert "history_missing" not in captured(RESPONSES, answer).metadata
