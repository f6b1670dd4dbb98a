"""Calls are found in the three forms, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.chat.tool_calls import WrittenCall, parse_calls, settled

NAMES = ["weather", "add"]
GRAZ = WrittenCall("weather", {"city": "Graz"})
HERMES = '<tool_call>{"name": "weather", "arguments": {"city": "Graz"}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (HERMES, "", [GRAZ]),
        (f"Let me look.\n{HERMES}", "Let me look.", [GRAZ]),
        (f"{HERMES}\n{HERMES}", "", [GRAZ, GRAZ]),
        (HERMES.removesuffix("</tool_call>"), "", [GRAZ]),
        (f"<tool_call>[{HERMES[11:-12]}, {HERMES[11:-12]}]</tool_call>", "", [GRAZ, GRAZ]),
        (HERMES.replace("weather", "unknown"), "", [WrittenCall("unknown", {"city": "Graz"})]),
        ('{"name": "weather", "arguments": {"city": "Graz"}}', "", [GRAZ]),
        ('{"name": "weather", "parameters": {"city": "Graz"}}', "", [GRAZ]),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Graz\\"}"}', "", [GRAZ]),
        ('```json\n{"name": "weather", "arguments": {"city": "Graz"}}\n```', "", [GRAZ]),
        ('weather(city="Graz")', "", [GRAZ]),
        (
            '[weather(city="Graz"), add(a=-1, b=[2])]',
            "",
            [GRAZ, WrittenCall("add", {"a": -1, "b": [2]})],
        ),
    ],
)
def test_calls_are_found(text: str, content: str, calls: list[WrittenCall]) -> None:
    assert parse_calls(text, NAMES) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "It is sunny in Graz.",
        "",
        '{"name": "Ada", "arguments": {"for": "reading"}}',
        '{"name": "weather"}',
        '{"name": "weather", "arguments": [1]}',
        '{"name": "weather", "arguments": {"t": NaN}}',
        '{"name": "weather", "arguments": {"t": 1e999}}',
        '{"name": "weather", "arguments": {"t": "\\ud800"}}',
        '{"weather": {"city": "Graz"}}',
        "[]",
        "[1, 2]",
        'print(city="Graz")',
        'weather("Graz")',
        "weather(city=open)",
        "weather(city=open('x'))",
        "weather(**{'city': 1})",
        "weather(t=1e999)",
        "weather(t={1, 2})",
        "weather(city='Graz'",
        'I would call weather(city="Graz")',
        "weather(" * 5000,
        "[" * 100_000,
        "<tool_call>not json</tool_call>",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse_calls(text, NAMES) == (text, [])


def test_odd_escapes_of_the_model_warn_nobody() -> None:
    assert parse_calls(r'weather(city="\d")', NAMES).calls == [
        WrittenCall("weather", {"city": r"\d"})
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["city", "a", "b"]), VALUES, max_size=3))
def test_any_arguments_round_trip_in_every_form(arguments: dict[str, object]) -> None:
    call = WrittenCall("weather", arguments)
    plain = json.dumps({"name": "weather", "arguments": arguments}, ensure_ascii=False)
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    for text in (f"<tool_call>{plain}</tool_call>", plain, f"[weather({listed})]"):
        if "</tool_call>" in plain:
            continue
        assert parse_calls(text, NAMES).calls == [call]
    assert json.loads(call.arguments_text()) == arguments


@given(
    st.lists(
        st.sampled_from([HERMES, "hello", " ", "\n", "<tool", "<", "{", "weather(", 'city="x")']),
        max_size=5,
    ).map("".join)
)
def test_what_is_settled_is_never_taken_back(text: str) -> None:
    content = parse_calls(text, NAMES).content
    shown = 0
    for end in range(len(text) + 1):
        count = settled(text[:end], NAMES)
        assert content.startswith(text[:end][:count])
        assert count >= shown or end == len(text)
        shown = count


def test_plain_talk_goes_out_at_once() -> None:
    assert settled("It is sunny", NAMES) == len("It is sunny")
    assert settled("w", NAMES) == 0
    assert settled("well", NAMES) == 4
