"""The text form of a conversation: written in one place, and read back as what was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orbiter.train.chat.tool_calls import arguments_of, read_call, write_call
from orbiter.train.chat.transcript import (
    content_of,
    read_transcript,
    state_of,
    write_action,
    write_transcript,
)
from orbiter.train.errors import DataError

MARKERS = [
    "", "[user]", "\\[user]", "\\\\[tool x]", "[tool add]", "[role \"x\"]", "[1]", "[see above]",
    "<tool_call>", "\\<tool_call>", '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "\n", "\n\n", "\n\n[assistant]\nhi", "[assistant]\n\n[user]", "a\r\n[user]\r", "[tool]", "\\",
]  # fmt: skip
text = st.text(max_size=20) | st.lists(st.sampled_from(MARKERS), max_size=4).map("\n".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
arguments = (
    values.map(json.dumps)
    | text
    | st.sampled_from(["", "[1]", "NaN", "hello", '"hello"', "{}", '{"a":1,"a":2}', '{"a": NaN}'])
)
names = st.text(min_size=1, max_size=12) | st.sampled_from(["add", "my tool", "a]b", '"q"', "a\nb"])
functions = st.builds(
    lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}},
    names,
    arguments,
)
customs = st.builds(
    lambda name, given: {"type": "custom", "custom": {"name": name, "input": given}}, names, text
)
others = st.builds(
    lambda kind, given: {"type": kind, "action": given},
    st.text(min_size=1, max_size=8),
    st.text(max_size=8),
)
calls = functions | customs | others
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])
        | st.text(min_size=1, max_size=8),
        "content": text,
    },
    optional={"tool_calls": st.lists(calls, min_size=1, max_size=3), "name": names},
)


def same_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call with the spaces of its JSON arguments as models write them."""
    if "function" not in call:
        return call
    given = call["function"]["arguments"]
    meant = arguments_of(given)
    if isinstance(meant, dict):
        given = json.dumps(meant, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": given}}


def expected(message: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if key != "name"}
    if message["role"] == "tool" and "name" in message:
        kept["name"] = message["name"]
    if "tool_calls" in message:
        kept["tool_calls"] = [same_call(call) for call in message["tool_calls"]]
    return kept


@given(st.lists(messages, max_size=4))
@example([{"role": "user", "content": "\n\n[assistant]\n<tool_call>"}])
@example([{"role": "a\n[user]", "content": ""}])
def test_the_reader_returns_what_the_writer_was_given(chat: list[dict[str, Any]]) -> None:
    written = write_transcript(chat)
    assert read_transcript(written) == [expected(message) for message in chat]
    assert write_transcript(read_transcript(written)) == written


@given(st.lists(messages, min_size=2, max_size=4))
def test_a_longer_conversation_begins_with_the_text_of_the_shorter(
    chat: list[dict[str, Any]],
) -> None:
    assert write_transcript(chat).startswith(write_transcript(chat[:-1]))


@given(calls)
def test_a_call_is_one_line_that_reads_back(call: dict[str, Any]) -> None:
    line = write_call({"id": "c1", **call} if "action" not in call else call)
    assert "\n" not in line
    assert read_call(line) == same_call(call)


@pytest.mark.parametrize("given", ["[1]", "NaN", "hello", '"hello"', "", '{"a": ', '{"a":1,"a":2}'])
def test_arguments_that_are_no_object_are_written_unchanged(given: str) -> None:
    call = {"function": {"name": "f", "arguments": given}}
    assert write_call(call) == (
        f'<tool_call>{{"name": "f", "arguments": {json.dumps(given)}}}</tool_call>'
    )


@given(text, st.lists(calls, max_size=3))
def test_an_action_gives_its_text_back(said: str, made: list[dict[str, Any]]) -> None:
    assert content_of(write_action(said, made), made) == said


def test_a_lone_user_message_is_its_bare_words_and_reads_back() -> None:
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    assert state_of(chat) == "What is 2 + 3?"
    assert read_transcript(state_of(chat)) == chat


def test_a_tools_answer_is_named_by_the_call_it_answers() -> None:
    made = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    chat: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]
    assert write_transcript(chat).endswith("\n\n[tool add]\n5")


def test_a_line_that_is_marked_as_a_call_and_is_none_is_an_error() -> None:
    with pytest.raises(DataError, match="expected a tool call"):
        read_transcript("[assistant]\n<tool_call>{</tool_call>")
