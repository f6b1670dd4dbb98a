"""OpenAI's Responses API: requests, answers and streams as its documentation shows them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orbiter.train.capture.wire import RESPONSES
from orbiter.train.capture.wire.events import events
from orbiter.train.capture.wire.responses import (
    accepts,
    assemble,
    chat,
    parts,
    previous,
    reply,
    tools,
)
from orbiter.train.chat.reply import Unreadable, decode, decode_fields

Json = Any

MESSAGE: Json = {
    "type": "message",
    "id": "msg_67ccd2bf17f0819081ff3bb2cf6508e6",
    "status": "completed",
    "role": "assistant",
    "content": [
        {
            "type": "output_text",
            "text": "In a peaceful grove, a unicorn named Lumina.",
            "annotations": [],
        }
    ],
}
THOUGHT: Json = {
    "type": "reasoning",
    "id": "rs_6876cf02e0bc8192b74af0fb64b715ff",
    "summary": [
        {"type": "summary_text", "text": "**Picking a name**"},
        {"type": "summary_text", "text": "Lumina means light."},
    ],
}
CALL: Json = {
    "type": "function_call",
    "id": "fc_67ca09c6bedc8190a7abfec07b1a1332",
    "call_id": "call_unLAR8MvFNptuiZK6K6HCy5k",
    "name": "get_current_weather",
    "arguments": '{"location":"Boston, MA","unit":"celsius"}',
    "status": "completed",
}
SEARCH: Json = {
    "type": "web_search_call",
    "id": "ws_67ccf18f64008190a39b619f4c8455ef",
    "status": "completed",
    "action": {"type": "search", "query": "positive news today"},
}
CUSTOM: Json = {
    "type": "custom_tool_call",
    "id": "ctc_6890e975e86c819c9338825b3e1994810694874912ae0ea6",
    "call_id": "call_aGiFQkRWSWAIsMQ19fKqxUgb",
    "name": "code_exec",
    "input": 'print("hello world")',
}


def response(*output: Json, **more: Json) -> Json:
    return {
        "id": "resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b",
        "object": "response",
        "created_at": 1741476542,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": "gpt-5.4",
        "output": list(output),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "usage": {
            "input_tokens": 36,
            "input_tokens_details": {"cached_tokens": 12},
            "output_tokens": 87,
            "output_tokens_details": {"reasoning_tokens": 64},
            "total_tokens": 123,
        },
        **more,
    }


WHOLE = response(THOUGHT, SEARCH, MESSAGE, CALL, CUSTOM)


def stream_events(body: Json, piece: int) -> list[Json]:
    """Return the events that the API streams for an answer, in their documented order."""
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    sent: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(body["output"]):
        where = {"output_index": index, "item_id": item["id"]}
        empty = {**item, "status": "in_progress"}
        deltas: list[tuple[str, Json, str]] = []
        if item["type"] == "message":
            empty["content"] = []
            deltas = [
                ("response.output_text", {"content_index": at}, part["text"])
                for at, part in enumerate(item["content"])
            ]
        elif item["type"] == "reasoning":
            empty["summary"] = []
            deltas = [
                ("response.reasoning_summary_text", {"summary_index": at}, part["text"])
                for at, part in enumerate(item["summary"])
            ]
        elif item["type"] == "function_call":
            empty["arguments"] = ""
            deltas = [("response.function_call_arguments", {}, item["arguments"])]
        elif item["type"] == "custom_tool_call":
            empty["input"] = ""
            deltas = [("response.custom_tool_call_input", {}, item["input"])]
        sent.append({"type": "response.output_item.added", "output_index": index, "item": empty})
        for kind, at, text in deltas:
            sent += [
                {"type": f"{kind}.delta", **where, **at, "delta": text[start : start + piece]}
                for start in range(0, len(text), piece)
            ]
        sent.append({"type": "response.output_item.done", "output_index": index, "item": item})
    sent.append({"type": "response.completed", "response": body})
    return [{**event, "sequence_number": number} for number, event in enumerate(sent)]


def encoded(sent: list[Json]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode())
        for each in sent
    )


def test_every_part_of_an_answer_has_its_place() -> None:
    answer = reply(WHOLE)
    assert answer.text == "In a peaceful grove, a unicorn named Lumina."
    assert "Picking a name" in answer.reasoning
    assert "Lumina means light." in answer.reasoning
    function, custom = answer.tool_calls
    assert function == {
        "id": "call_unLAR8MvFNptuiZK6K6HCy5k",
        "type": "function",
        "function": {"name": "get_current_weather", "arguments": CALL["arguments"]},
    }
    assert (custom["id"], custom["type"]) == (CUSTOM["call_id"], "custom")
    assert custom["custom"] == {"name": "code_exec", "input": CUSTOM["input"]}
    (search,) = answer.server_calls
    assert (search["name"], search["raw"]) == ("web_search", [SEARCH])
    assert (answer.response_id, answer.model) == (WHOLE["id"], "gpt-5.4")
    assert (answer.finish_reason, answer.error, answer.pending) == ("completed", None, False)
    assert answer.usage == {
        "input_tokens": 36,
        "output_tokens": 87,
        "cached_tokens": 12,
        "reasoning_tokens": 64,
    }


@pytest.mark.parametrize("piece", [1, 9, 1000])
def test_a_stream_gives_what_the_whole_answer_gives(piece: int) -> None:
    sent = stream_events(WHOLE, piece)
    body = encoded(sent)
    assert any(mark in body for mark in RESPONSES.terminal)
    assert assemble(events(body)) == reply(WHOLE)
    sent[-1]["response"] = {**WHOLE, "output": []}  # as some servers end their streams
    assert assemble(events(encoded(sent))) == reply(WHOLE)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8, 0.98])
def test_a_stream_that_breaks_off_keeps_what_came(share: float) -> None:
    sent = stream_events(WHOLE, 4)
    cut = sent[: int(share * len(sent))]
    answer = assemble(events(encoded(cut)))
    whole = reply(WHOLE)
    assert whole.text.startswith(answer.text)
    assert len(answer.tool_calls) <= 2
    assert (answer.finish_reason, answer.response_id) == (None, WHOLE["id"])
    assert not any(mark in encoded(cut) for mark in RESPONSES.terminal)
    assert answer.text == whole.text or share < 0.6


@pytest.mark.parametrize(
    ("more", "reason", "error"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
         "max_output_tokens", None),
        ({"status": "failed", "error": {"code": "server_error", "message": "The model failed."}},
         "failed", "The model failed."),
        ({"status": "cancelled"}, "cancelled", None),
    ],
)  # fmt: skip
def test_why_an_answer_is_not_complete_is_kept(more: Json, reason: str, error: str | None) -> None:
    body = response(MESSAGE, **more)
    last = {"type": f"response.{more['status']}", "response": body}
    for answer in (reply(body), assemble([*stream_events(body, 9)[:-1], last])):
        assert answer.finish_reason == reason
        assert answer.text == "In a peaceful grove, a unicorn named Lumina."
        assert (error or "") in (answer.error or "")
        assert (answer.error is None) == (error is None)


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_background_response_is_pending(status: str) -> None:
    answer = reply(response(status=status) | {"output": []})
    assert answer.pending
    assert not answer.is_empty()
    assert reply({"id": "resp_1", "status": status}).pending


def test_a_refusal_is_text_and_log_probabilities_come_with_their_tokens() -> None:
    refusal = {"type": "refusal", "refusal": "I'm sorry, I cannot assist with that request."}
    logprobs = [{"token": "I", "bytes": [73], "logprob": -0.25, "top_logprobs": []}]
    text = {"type": "output_text", "text": "I", "annotations": [], "logprobs": logprobs}
    answer = reply(response({**MESSAGE, "content": [text]}))
    assert (answer.logprobs, answer.logprob_tokens) == ([-0.25], ["I"])
    assert "cannot assist" in reply(response({**MESSAGE, "content": [refusal]})).text


@pytest.mark.parametrize("body", [None, [], {"error": {"message": "no"}}, {"output": "text"}])
def test_what_is_no_response_is_not_taken_for_one(body: Json) -> None:
    with pytest.raises(Unreadable, match="not a response"):
        reply(body)


def asked(**fields: Json) -> list[Json]:
    raw = decode_fields(json.dumps({"model": "gpt-5.4", **fields}).encode())
    assert accepts(raw, certain=False)
    return list(chat([decode(part) for part in parts(raw)]))


def test_a_text_and_a_list_of_items_are_the_same_question() -> None:
    system = {"role": "system", "content": "Talk like a pirate."}
    question = {"role": "user", "content": "Are semicolons optional?"}
    assert asked(instructions=system["content"], input=question["content"]) == [system, question]
    part = {"type": "input_text", "text": question["content"]}
    assert asked(instructions=system["content"], input=[{"role": "user", "content": [part]}]) == [
        system,
        question,
    ]


def test_the_calls_of_a_turn_are_in_one_message_with_its_text_and_results_follow() -> None:
    messages = asked(
        input=[
            {"role": "user", "content": "What is the weather like in Boston?"},
            THOUGHT,
            MESSAGE,
            CALL,
            {"type": "function_call_output", "call_id": CALL["call_id"], "output": '{"temp": 9}'},
        ]
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["content"] == "In a peaceful grove, a unicorn named Lumina."
    assert [call["id"] for call in messages[1]["tool_calls"]] == [CALL["call_id"]]
    assert messages[2] == {
        "role": "tool",
        "tool_call_id": CALL["call_id"],
        "content": '{"temp": 9}',
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"previous_response_id": "resp_1", "input": "x"}, "resp_1"),
        ({"conversation": "conv_1", "input": "x"}, "conv_1"),
        ({"conversation": {"id": "conv_2"}, "input": "x"}, "conv_2"),
        ({"previous_response_id": None, "input": "x"}, None),
        ({"input": "x"}, None),
    ],
)
def test_what_a_request_continues_is_known(fields: Json, expected: str | None) -> None:
    assert previous(decode_fields(json.dumps(fields).encode())) == expected


def test_a_function_gets_the_form_of_chat_completions_and_openais_own_tool_keeps_its() -> None:
    flat = {"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": True}
    own = {"type": "web_search", "search_context_size": "low"}
    inner = {"name": "f", "description": "d", "parameters": {}, "strict": True}
    assert tools([flat, own]) == [{"type": "function", "function": inner}, own]
