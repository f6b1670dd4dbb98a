"""Anthropic's Messages API: requests, answers and streams as its documentation shows them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orbiter.train.capture.wire import MESSAGES
from orbiter.train.capture.wire.anthropic import accepts, assemble, chat, parts, reply, tools
from orbiter.train.capture.wire.events import events
from orbiter.train.chat.reply import Unreadable, decode, decode_fields

Json = Any

WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a given location",
    "input_schema": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}
TEXT_STREAM = b"""\
event: message_start
data: {"type": "message_start", "message": {"id": "msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY", \
"type": "message", "role": "assistant", "content": [], "model": "claude-opus-4-6", \
"stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 25, "output_tokens": 1}}}

event: content_block_start
data: {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}

event: content_block_delta
data: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}}

event: content_block_stop
data: {"type": "content_block_stop", "index": 0}

event: message_delta
data: {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence":null}, \
"usage": {"output_tokens": 15}}

event: message_stop
data: {"type": "message_stop"}

"""
TOOL_ANSWER: Json = {
    "id": "msg_014p7gG3wDgGV9EUtLvnow3U",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-6",
    "stop_sequence": None,
    "usage": {"input_tokens": 472, "output_tokens": 89},
    "content": [
        {"type": "text", "text": "Okay, let's check the weather for San Francisco, CA:"},
        {
            "type": "tool_use",
            "id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
            "name": "get_weather",
            "input": {"location": "San Francisco, CA", "unit": "fahrenheit"},
        },
    ],
    "stop_reason": "tool_use",
}
THINKING_ANSWER: Json = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-6",
    "content": [
        {"type": "thinking", "thinking": "27 * 453 = 12231.", "signature": "EqQBCgIYAhIM1gbcDa9G"},
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
        {"type": "text", "text": "27 * 453 = 12,231"},
    ],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 9, "output_tokens": 80},
}
SEARCH_ANSWER: Json = {
    "id": "msg_a930390d3a",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-6",
    "content": [
        {"type": "text", "text": "I'll search for when Claude Shannon was born."},
        {
            "type": "server_tool_use",
            "id": "srvtoolu_01WYG3ziw53XMcoyKL4XcZmE",
            "name": "web_search",
            "input": {"query": "claude shannon birth date"},
        },
        {
            "type": "web_search_tool_result",
            "tool_use_id": "srvtoolu_01WYG3ziw53XMcoyKL4XcZmE",
            "content": [
                {
                    "type": "web_search_result",
                    "url": "https://en.wikipedia.org/wiki/Claude_Shannon",
                    "title": "Claude Shannon - Wikipedia",
                    "encrypted_content": "EqgfCioIARgBIiQ3YTAwMjY1",
                    "page_age": "April 30, 2025",
                }
            ],
        },
        {
            "type": "text",
            "text": "Claude Shannon was born on April 30, 1916, in Petoskey, Michigan",
            "citations": [
                {
                    "type": "web_search_result_location",
                    "url": "https://en.wikipedia.org/wiki/Claude_Shannon",
                    "title": "Claude Shannon - Wikipedia",
                    "encrypted_index": "Eo8BCioIAhgBIiQyYjQ0OWJm",
                    "cited_text": "Claude Elwood Shannon (April 30, 1916",
                }
            ],
        },
    ],
    "usage": {
        "input_tokens": 6039,
        "output_tokens": 931,
        "server_tool_use": {"web_search_requests": 1},
    },
    "stop_reason": "end_turn",
}


def streamed(answer: Json, piece: int) -> bytes:
    """Stream an answer as the API does, each text and input in pieces of `piece` characters."""
    start = {**answer, "content": [], "stop_reason": None, "usage": {"input_tokens": 1}}
    sent: list[Json] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(answer["content"]):
        grown = {
            "text": ("text", "text_delta", "text"),
            "thinking": ("thinking", "thinking_delta", "thinking"),
            "tool_use": ("input", "input_json_delta", "partial_json"),
            "server_tool_use": ("input", "input_json_delta", "partial_json"),
        }.get(block["type"])
        empty = block
        if grown is not None:
            field, kind, name = grown
            value = block[field]
            empty = {**block, field: "" if isinstance(value, str) else {}}
            empty.pop("citations", None)
            text = value if isinstance(value, str) else json.dumps(value)
            texts = [text[at : at + piece] for at in range(0, len(text), piece)]
            deltas: list[Json] = [{"type": kind, name: part} for part in texts]
            deltas += [
                {"type": "citations_delta", "citation": each} for each in block.get("citations", ())
            ]
        else:
            deltas = []
        sent.append({"type": "content_block_start", "index": index, "content_block": empty})
        sent += [
            {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
        ]
        sent.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    sent.append({"type": "message_delta", "delta": end, "usage": answer["usage"]})
    sent.append({"type": "message_stop"})
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode())
        for each in sent
    )


def test_the_documented_text_stream_is_one_answer() -> None:
    answer = assemble(events(TEXT_STREAM))
    assert (answer.text, answer.finish_reason, answer.error) == ("Hello!", "end_turn", None)
    assert answer.response_id == "msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY"
    assert answer.model == "claude-opus-4-6"
    assert answer.usage == {"input_tokens": 25, "output_tokens": 15}
    assert any(mark in TEXT_STREAM for mark in MESSAGES.terminal)


@pytest.mark.parametrize("lines", range(1, 21, 3))
def test_a_stream_cut_anywhere_keeps_what_came_and_has_no_end(lines: int) -> None:
    part = b"\n".join(TEXT_STREAM.split(b"\n")[:lines])
    answer = assemble(events(part))
    assert "Hello!".startswith(answer.text)
    assert answer.finish_reason is None
    assert not any(mark in part for mark in MESSAGES.terminal)


def test_a_call_is_for_the_agent_and_its_arguments_are_json_text() -> None:
    answer = reply(TOOL_ANSWER)
    assert answer.text == "Okay, let's check the weather for San Francisco, CA:"
    (call,) = answer.tool_calls
    function: Json = call["function"]
    assert (call["id"], call["type"]) == ("toolu_01T1x1fJ34qAmk2tNTrN7Up6", "function")
    assert function["name"] == "get_weather"
    assert json.loads(function["arguments"]) == TOOL_ANSWER["content"][1]["input"]
    assert answer.finish_reason == "tool_use"
    assert answer.server_calls == []


def test_thoughts_are_apart_from_the_text_and_hidden_ones_add_nothing() -> None:
    answer = reply(THINKING_ANSWER)
    assert answer.text == "27 * 453 = 12,231"
    assert answer.reasoning == "27 * 453 = 12231."


def test_a_search_by_the_server_is_kept_with_its_result_and_is_no_call_for_the_agent() -> None:
    answer = reply(SEARCH_ANSWER)
    assert answer.tool_calls == []
    (call,) = answer.server_calls
    assert call["name"] == "web_search"
    assert call["arguments"] == {"query": "claude shannon birth date"}
    assert call["raw"] == SEARCH_ANSWER["content"][1:3]
    assert answer.text == (
        "I'll search for when Claude Shannon was born."
        "Claude Shannon was born on April 30, 1916, in Petoskey, Michigan"
    )


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize(
    "answer", [TOOL_ANSWER, THINKING_ANSWER, SEARCH_ANSWER], ids=["tool", "thinking", "search"]
)
def test_a_stream_gives_what_the_whole_answer_gives(answer: Json, piece: int) -> None:
    assert assemble(events(streamed(answer, piece))) == reply(answer)


def test_an_error_within_a_stream_is_the_error_of_the_answer() -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    begun = TEXT_STREAM.partition(b"event: content_block_stop")[0]
    answer = assemble(
        events(begun + b"event: error\ndata: %b\n\n" % json.dumps(overloaded).encode())
    )
    assert answer.text == "Hello!"
    assert "overloaded_error" in (answer.error or "")


def test_input_tokens_include_those_read_from_and_written_to_the_cache() -> None:
    usage = {
        "input_tokens": 50,
        "cache_creation_input_tokens": 148,
        "cache_read_input_tokens": 1800,
        "output_tokens": 503,
    }
    assert reply(TOOL_ANSWER | {"usage": usage}).usage == {
        "input_tokens": 1998,
        "output_tokens": 503,
        "cached_tokens": 1800,
        "cache_write_tokens": 148,
    }


@pytest.mark.parametrize(
    "body",
    [None, [], {"type": "error", "error": {"type": "not_found_error"}}, {"content": "text"},
     {"content": [{"type": "text", "text": None}]}, {"content": ["text"]}],
)  # fmt: skip
def test_what_is_no_message_is_not_taken_for_one(body: Json) -> None:
    with pytest.raises(Unreadable, match="not a message"):
        reply(body)


REQUEST: Json = {
    "model": "claude-opus-4-6",
    "max_tokens": 1024,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}],
    "messages": [
        {"role": "user", "content": "What's the weather like in San Francisco?"},
        {"role": "assistant", "content": TOOL_ANSWER["content"]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
                    "content": [{"type": "text", "text": "59F, mostly cloudy"}],
                },
                {"type": "text", "text": "And tomorrow?"},
            ],
        },
    ],
}


def test_a_request_becomes_a_chat_in_openais_form() -> None:
    fields = decode_fields(json.dumps(REQUEST).encode())
    assert accepts(fields, certain=False)
    arguments = {"location": "San Francisco, CA", "unit": "fahrenheit"}
    system, question, answer, result, further = chat([decode(part) for part in parts(fields)])
    assert system["role"] == "system"
    assert "Be brief." in str(system["content"])
    assert question == {"role": "user", "content": "What's the weather like in San Francisco?"}
    call: Json = answer["tool_calls"]
    assert answer["content"] == "Okay, let's check the weather for San Francisco, CA:"
    assert json.loads(call[0]["function"]["arguments"]) == arguments
    assert result == {
        "role": "tool",
        "tool_call_id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
        "content": "59F, mostly cloudy",
    }
    assert further == {"role": "user", "content": "And tomorrow?"}


def test_a_tool_gets_openais_form_and_anthropics_own_keeps_its_form() -> None:
    ours, theirs = tools(REQUEST["tools"])
    assert ours == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": WEATHER["description"],
            "parameters": WEATHER["input_schema"],
        },
    }
    assert theirs == REQUEST["tools"][1]


def test_a_failed_tool_and_an_image_in_its_result_are_kept() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iV"}}
    blocks = [
        {"type": "tool_result", "tool_use_id": "a", "content": "no such city", "is_error": True},
        {"type": "tool_result", "tool_use_id": "b", "content": [image]},
    ]
    assert chat([{"role": "user", "content": blocks}]) == [
        {"role": "tool", "tool_call_id": "a", "content": "no such city", "is_error": True},
        {"role": "tool", "tool_call_id": "b", "content": [image]},
    ]
