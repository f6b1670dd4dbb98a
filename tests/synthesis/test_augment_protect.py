"""What a machine reads, and what carries a value, is never touched."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping

import pytest

from orbiter.train.chat.transcript import state_of
from orbiter.train.synthesis import augment_add_noise
from orbiter.train.synthesis.augment.protect import free_spans
from orbiter.train.synthesis.comparison import turns_in
from orbiter.train.trajectory import TrajectoryItem

PROTECTED = [
    "`x = f(y)`",
    "```python\ndef f(x,  y):\n    return {'a': 1}\n```",
    "~~~\nplain code here\n~~~",
    '{"name": "search", "arguments": {"query": "a {b} \\" c", "k": [1, 2]}}',
    '{"note": "one lone } in it", "query": "words that one could spoil"}',
    "{'name': 'search', 'nested': {'a': 'b'}}",
    '["one", "two", {"three": null}]',
    'search(query="python decorators", options=(1, 2))',
    '<tool_call>{"name": "go"} and words inside</tool_call>',
    '<invoke name="get_weather"><parameter name="city">Berlin town</parameter></invoke>',
    "<b>",
    "<|im_start|>",
    "<\uff5cassistant\uff5c>",
    "[INST]",
    "{slot_name}",
    "{{ jinja.value }}",
    "${HOME}",
    "%(name)s",
    "https://example.com/a/b?c=d#e",
    "www.example.com",
    "/usr/local/lib/thing.so",
    "src/main.py",
    "C:\\Users\\me\\file.txt",
    "someone@example.org",
    "snake_case_name",
    "1234.56",
    "2026-11-22T10:30",
    "42%",
    "v1.2.3",
    "gpt4turbo",
    "ORD-12345",
    "gpt-4o",
    "us-east-1",
    "INV-2024-001",
    "claude-3.5-sonnet@20240620",
    "3f2a9c1e-77aa-4bde-8f00-1c2d3e4f5a6b",
    "deadbeefcafe",
    "main.py",
    "archive.tar.gz",
    "first.last@mail.example.org",
    "mailto:anna@example.org",
    "ftp://files.example.org/a",
    "^1.2.3-rc.1+build5",
    "node_modules",
    "getUserName",
    "HttpClient",
    "ACME-PROD",
    "my-service-name",
    "#general",
    "ГОСТ-7",
    "+43-660-1234567",
]


@pytest.mark.parametrize("span", PROTECTED)
@pytest.mark.parametrize("level", [0.3, 1.0])
def test_it_is_left_as_it_is(span: str, level: float) -> None:
    text = f"Before it stand some words\n{span}\nand after it there are a few more of them"
    rows = [{"input": text}]
    noisy = [str(augment_add_noise(rows, level, seed=seed)[0]["input"]) for seed in range(20)]
    assert all(span in one for one in noisy)
    assert len(set(noisy)) == 20, "the words around it are not protected"


@pytest.mark.parametrize("span", ["https://example.com/a", "1234", "snake_name", "{slot}"])
def test_nothing_grows_onto_it(span: str) -> None:
    text = f"look at {span} now"
    for seed in range(50):
        noisy = str(augment_add_noise([{"input": text}], 0.8, seed=seed)[0]["input"])
        assert f" {span} " in noisy


@pytest.mark.parametrize(
    "line",
    [
        "    indented = code",
        "def f(x, y): return x",
        "import numpy as np",
        "from os import path",
        "for item in things:",
        "const answer = other;",
        "unsigned int counter;",
        "callback(first, second);",
        "total = price",
        "SELECT name FROM people",
        ">>> print",
    ],
)
def test_a_line_that_can_only_be_code_is_protected(line: str) -> None:
    text = f"The words before it are prose\n{line}\nand so are these behind it"
    for seed in range(20):
        noisy = str(augment_add_noise([{"input": text}], 0.5, seed=seed)[0]["input"])
        assert f"\n{line}\n" in noisy
    assert free_spans(line) == [] or free_spans(line)[0][0] > 0


@pytest.mark.parametrize(
    "text",
    [
        "Import taxes rose, and from that day on nobody returned.",
        "While waiting: read the book, or ask a friend and/or a colleague!",
        "A plain text (with an aside) and [some remark] in it",
        "It rained for a whole week and a day;\nthe river rose above its banks;",
        "He said less < more and wrote a lone { brace",
    ],
)
def test_prose_is_not_taken_for_code(text: str) -> None:
    free = sum(end - start for start, end in free_spans(text))
    assert free >= 0.75 * len(text)


def test_free_spans_lie_in_order_and_within_the_text() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = " ".join(rng.choice([*PROTECTED, "word", "another", "("]) for _ in range(12))
        spans = free_spans(text)
        flat = [place for span in spans for place in span]
        assert flat == sorted(flat)
        assert all(0 <= start < end <= len(text) for start, end in spans)
        assert not any(re.search(r"\d", text[start:end]) for start, end in spans)


def test_every_json_call_still_parses() -> None:
    rng = random.Random(0)
    sentence = "please look up the weather for me and then tell my friend about it"
    words = sentence.split()
    rows = []
    for _ in range(2000):
        call = {
            "name": "get",
            "arguments": {
                "q": "two lone }} and " + " ".join(rng.sample(words, 4)),
                "n": rng.random(),
            },
        }
        prose = [" ".join(rng.sample(words, 8)) for _ in range(2)]
        rows.append({"input": f"{prose[0]} {json.dumps(call)} {prose[1]}", "call": call})
    noisy = augment_add_noise(rows, 0.2)
    assert (
        sum(row["input"] != before["input"] for row, before in zip(noisy, rows, strict=True)) > 1900
    )
    for row in noisy:
        text = str(row["input"])
        assert json.loads(text[text.index("{") : text.rindex("}") + 1]) == row["call"]


def test_ones_own_patterns_are_protected_too() -> None:
    text = "the Ministry of Silly Walks is open to all visitors today"
    for seed in range(20):
        (row,) = augment_add_noise([{"input": text}], 0.9, seed=seed, protect=["Silly Walks"])
        assert "Silly Walks" in str(row["input"])


@pytest.mark.parametrize("name", ["ORD-12345", "gpt-4o", "us-east-1", "INV-2024-001", "v2.0-beta"])
@pytest.mark.parametrize("text", ["订单{}什么时候到", "заказ {}, когда он придёт", "Where is {}?"])
def test_an_identifier_in_any_sentence_is_kept_and_the_rest_is_not(name: str, text: str) -> None:
    whole = text.format(name)
    noisy = [augment_add_noise([{"input": whole}], 0.6, seed=n)[0]["input"] for n in range(60)]
    assert all(name in str(each) for each in noisy)
    assert len(set(noisy)) > 20


@pytest.mark.parametrize(
    "row",
    [
        {"action": 'book(city="Klagenfurt", hotel="Golden Goose")'},
        {"action": '<tool_call>{"name": "book", "arguments": {"to": "Golden Goose, Klagenfurt"}}'},
        {
            "action": "",
            "tool_calls": [
                {
                    "function": {
                        "name": "b",
                        "arguments": '{"to": ["Golden Goose"], "c": "Klagenfurt"}',
                    }
                }
            ],
        },
        {
            "action": "",
            "tool_calls": [{"function": {"arguments": {"x": "Golden Goose Klagenfurt"}}}],
        },
    ],
)
def test_what_the_action_names_is_kept(row: dict[str, object]) -> None:
    text = "please book me a room at the golden goose in Klagenfurt for two nights next week"
    for seed in range(60):
        (noisy,) = augment_add_noise([{"state": text, **row}], 0.5, seed=seed)
        assert "Klagenfurt" in str(noisy["state"])
        assert "golden" in str(noisy["state"])
        assert "goose" in str(noisy["state"])


MESSAGES: list[dict[str, object]] = [
    {"role": "system", "content": "You help customers of a shop, kindly and briefly."},
    {"role": "user", "content": "Where is the parcel that was promised for yesterday morning?"},
    {"role": "assistant", "content": "Let me look.", "tool_calls": [{"id": "1", "function": {}}]},
    {"role": "tool", "tool_call_id": "1", "content": "It is waiting at the station."},
    {"role": "user", "content": [{"type": "text", "text": "And what does the delay cost me?"}]},
]
STATE = (
    "[system]\nYou help customers of a shop, kindly and briefly.\n\n[user]\nWhere is the parcel "
    "that was promised for yesterday morning?\n\n[assistant]\nLet me look.\n\n[tool find]\nIt is "
    "waiting at the station.\n\n[user]\nAnd what does the delay cost me?"
)


def user_text(message: Mapping[str, object]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else str(content[0]["text"])  # type: ignore[index]  # the list above


@pytest.mark.parametrize("as_item", [True, False])
def test_in_a_chat_only_the_user_makes_slips(as_item: bool) -> None:
    if as_item:
        item = TrajectoryItem(STATE, "Nothing.", messages=MESSAGES)
        (noisy,) = augment_add_noise([item], 0.2)
        state, messages = noisy.state, noisy.messages
    else:
        rows = [{"state": STATE, "action": "Nothing.", "messages": MESSAGES}]
        (row,) = augment_add_noise(rows, 0.2)
        state, messages = str(row["state"]), row["messages"]  # type: ignore[assignment]  # a list
    assert messages is not None
    for before, after in zip(MESSAGES, messages, strict=True):
        if before["role"] == "user":
            assert user_text(after) != user_text(before)
            assert f"[user]\n{user_text(after)}" in state
            assert {**after, "content": 0} == {**before, "content": 0}
        else:
            assert after == before
    assert state.count("\n\n[") == 4
    assert str(MESSAGES[1]["content"]) in STATE, "what was handed in is not changed"


@pytest.mark.parametrize("foreign_form", [False, True])
def test_words_that_the_user_shares_with_another_turn_change_in_the_users_turn_only(
    foreign_form: bool,
) -> None:
    words = "yesterday morning please"
    call = {"function": {"name": "find", "arguments": json.dumps({"when": words})}}
    messages: list[dict[str, object]] = [
        {"role": "system", "content": f"Customers often say: {words}"},
        {"role": "user", "content": "When does the parcel arrive?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **call}]},
        {"role": "tool", "tool_call_id": "1", "content": f"no parcel {words}"},
        {"role": "user", "content": words},
    ]
    state = state_of(messages)
    if foreign_form:  # another tool wrote the state, without the call
        state = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    for seed in range(10):
        item = TrajectoryItem(state, "Done.", messages=messages)
        (changed,) = augment_add_noise([item], 0.3, seed=seed)
        noisy = list(changed.messages or ())
        assert noisy[4]["content"] != words
        assert [noisy[0], *noisy[2:4]] == [messages[0], *messages[2:4]]
        expected = state_of(noisy)
        if foreign_form:
            expected = "\n".join(f"{message['role']}: {message['content']}" for message in noisy)
        assert changed.state == expected


def test_in_a_transcript_without_messages_only_the_user_makes_slips() -> None:
    for seed in range(20):
        (row,) = augment_add_noise([{"state": STATE}], 0.2, seed=seed)
        before, after = turns_in(STATE), turns_in(str(row["state"]))
        assert [turn for turn in before if turn.role != "user"] == [
            turn for turn in after if turn.role != "user"
        ]
        assert [turn.role for turn in before] == [turn.role for turn in after]
        assert before != after
