"""Parts of messages, in every form that an API or a tracer gives them, become OpenAI's."""

from __future__ import annotations

from typing import Any

import pytest

from orbiter.train.chat.dialects import joined, message_from, messages_from
from orbiter.train.chat.parts import call_from

URL = "data:image/png;base64,aGk="


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": URL},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": URL}},
        {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": "aGk=", "mime_type": "image/png"},
        {"type": "image", "url": URL},
        {"type": "blob", "modality": "image", "content": "aGk=", "mime_type": "image/png"},
        {"type": "uri", "modality": "image", "uri": URL},
        {"type": "image_url", "image_url": {"url": URL}},
    ],
)
def test_an_image_has_one_form(part: dict[str, Any]) -> None:
    image = {"type": "image_url", "image_url": {"url": URL}}
    (message,) = message_from({"role": "user", "content": [part]})
    assert message["content"] == [image]
    block = {"type": "tool_result", "tool_use_id": "c", "content": [part]}
    (result,) = message_from({"role": "user", "content": [block]})
    assert result == {"role": "tool", "tool_call_id": "c", "content": [image]}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source": {"type": "base64", "data": "__REDACTED__"}},
        {"type": "blob", "modality": "audio", "content": "aGk="},
        {"type": "redacted_thinking", "data": "Z0Fa"},
    ],
)
def test_what_cannot_be_an_image_stays_as_it_is(part: dict[str, Any]) -> None:
    (message,) = message_from({"role": "user", "content": [part]})
    assert message["content"] == [part]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ('[{"type": "text", "text": "rain"}]', "rain"),
        (
            '[{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "u"}]',
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}],
        ),
        ('[{"type": "row", "value": 1}]', '[{"type": "row", "value": 1}]'),
        ('[{"name": "Ada"}]', '[{"name": "Ada"}]'),
        ('[{"type": "text"', '[{"type": "text"'),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_a_result_that_is_json_of_parts_is_parts_and_any_other_text_stays(
    text: str, content: object
) -> None:
    (message,) = message_from({"role": "tool", "tool_call_id": "c", "content": text})
    assert message["content"] == content


@pytest.mark.parametrize(
    ("given", "call"),
    [
        (
            {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}},
        ),
        (
            {"type": "tool_use", "id": "c", "name": "f", "input": {}, "partial_json": '{"a": 1}'},
            {"type": "function", "id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}},
        ),
        (
            {"id": "c", "type": "custom", "custom": {"name": "exec", "input": "ls"}},
            {"type": "custom", "id": "c", "custom": {"name": "exec", "input": "ls"}},
        ),
        (
            {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "***"},
            {"type": "custom", "id": "c", "custom": {"name": "patch", "input": "***"}},
        ),
        (
            {"type": "web_search_call", "id": "ws", "action": {"query": "x"}},
            {"type": "web_search_call", "id": "ws", "action": {"query": "x"}},
        ),
    ],
)
def test_a_call_of_any_kind_keeps_its_name_input_and_id(
    given: dict[str, Any], call: dict[str, Any]
) -> None:
    assert call_from(given) == call


def test_calls_in_content_and_beside_it_are_the_same_ones() -> None:
    block = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    told = {"name": "f", "args": {"a": 1}, "id": "c", "type": "tool_call"}
    other = {"type": "tool_use", "id": "d", "name": "g", "input": {"b": 2}}
    (message,) = message_from({"role": "ai", "content": [block, other], "tool_calls": [told]})
    names = [(call["id"], call["function"]["arguments"]) for call in message["tool_calls"]]
    assert names == [("d", '{"b": 2}'), ("c", '{"a": 1}')]
    assert message["content"] is None


def test_a_call_with_broken_arguments_is_kept() -> None:
    broken = {"name": "f", "args": '{"a": ', "id": "c", "error": "not JSON"}
    (message,) = message_from({"role": "ai", "content": "", "invalid_tool_calls": [broken]})
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": '}


def test_the_items_of_the_responses_api_are_messages() -> None:
    request = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "Hm"}]},
            {
                "type": "message",
                "role": "assistant",
                "id": "m",
                "status": "completed",
                "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": "2"},
        ],
    }
    assert messages_from(request) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm",
            "tool_calls": [
                {"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}},
                {"type": "custom", "id": "d", "custom": {"name": "g", "input": "x"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "tool", "tool_call_id": "d", "content": "2"},
    ]


def test_only_pieces_of_an_answer_are_joined_where_texts_may_be_choices() -> None:
    call = {"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}
    thought = {"role": "assistant", "content": "", "reasoning_content": "Hm"}
    first, second = ({"role": "assistant", "content": text} for text in ("one", "two"))
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert joined([thought, first, calls], pieces_only=True) == [
        {"role": "assistant", "content": "one", "reasoning_content": "Hm", "tool_calls": [call]}
    ]
    assert joined([first, second], pieces_only=True) == [first, second]
    assert joined([first, second]) == [{"role": "assistant", "content": "one\ntwo"}]


def test_the_system_prompt_of_anthropic_is_a_message() -> None:
    system = [{"type": "text", "text": "Be brief."}]
    request = {"system": system, "messages": [{"role": "user", "content": "Hi"}]}
    assert messages_from(request) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
