"""What a machine reads, and what carries a value, is never touched."""

from __future__ import annotations

import json
import random
import re

import pytest

from orbiter.train.synthesis import augment_add_noise
from orbiter.train.synthesis.augment.protect import free_spans

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
    for row in noisy:
        text = str(row["input"])
        assert json.loads(text[text.index("{") : text.rindex("}") + 1]) == row["call"]


def test_ones_own_patterns_are_protected_too() -> None:
    text = "the Ministry of Silly Walks is open to all visitors today"
    for seed in range(20):
        (row,) = augment_add_noise([{"input": text}], 0.9, seed=seed, protect=["Silly Walks"])
        assert "Silly Walks" in str(row["input"])
