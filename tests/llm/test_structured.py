"""Values in answers: the last complete one that fits the type, wherever it stands."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from orbiter.train.errors import DataError
from orbiter.train.llm.structured import value_in


@dataclass
class Grade:
    score: float


@pytest.mark.parametrize(
    "answer",
    [
        '{"score": 0.5}',
        '<think>{"score": 1}</think>{"score": 0.5}',
        '{"score": 1} is a draft </think> {"score": 0.5}',
        'Example {"score": 0} but here: {"score": 0.5}',
        '{"score": 0.5} (see {x})',
        '{"score": 0.5} as in [1] and {"page": 3}',
        '```json\n{"score": 0.5}\n```\nand nothing else',
        '{note: {"score": 0.5}}',
        '{"result": {"score": 0.5}}',
        '[{"score": 0.1}, {"score": 0.5}]',
        '{"score": 0.5, "parts": [{"score": 0.1}]}',
        '{"score": 0.5, "why": "not {\\"score\\": 1}"}',
        '{"score": 0.5} {"score": 0.9',
        '{"score": 0.5}\n{"score": "high"}',
        "[" * 3000 + '{"score": 0.5}',
    ],
)
def test_the_last_complete_value_that_fits_is_taken(answer: str) -> None:
    assert value_in(answer, Grade) == Grade(0.5)


def test_other_types_are_found_too() -> None:
    assert value_in('As a list: ["a", "b"], not {"x": 1}.', list[str]) == ["a", "b"]
    assert value_in(" 0.5 ", float) == 0.5
    assert value_in("The grade:\n```\n0.5\n```", float) == 0.5
    assert value_in('First {"a": 1}, then {"b": 2}.', dict[str, int]) == {"b": 2}


@pytest.mark.parametrize(
    ("answer", "objection"),
    [
        ("Half.", "there is no JSON"),
        ("", "there is no JSON"),
        ('<think>{"score": 1}', "there is no JSON"),
        ('{"score": "high"}', "does not fit"),
        ('{"score": 0.5', "there is no JSON"),
        ('{"score": NaN}', "there is no JSON"),
        ("{" * 100_000, "there is no JSON"),
        ("[" * 100_000, "there is no JSON"),
    ],
)
def test_an_answer_without_such_a_value_says_what_is_wrong(answer: str, objection: str) -> None:
    with pytest.raises(DataError, match=objection):
        value_in(answer, Grade)
