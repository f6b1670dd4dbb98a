from __future__ import annotations

from pathlib import Path

import pytest

from orbiter.train.demo.prompt import render
from orbiter.train.demo.requests import ToolRequest, fetch_wheel, parse_requests
from orbiter.train.errors import DataError, StorageError

QUESTION = (
    b'{"id": "a", "question": [[{"role": "user", "content": "Add 1"}]], "function": [{"name": "add"'
    b', "description": "Adds.", "parameters": {"type": "dict", "properties": {"n": {"type":'
    b' "integer", "description": "What to add."}, "to": {"type": "array", "items": {"type":'
    b' "integer"}, "description": "To each."}}, "required": ["n"]}}]}'
)
ANSWER = b'{"id": "a", "ground_truth": [{"add": {"n": [1], "to": ["", [2]]}}]}'


def test_the_set_is_400_requests_over_370_functions(requests: list[ToolRequest]) -> None:
    assert len(requests) == 400
    assert len({request.function.name for request in requests}) == 370


def test_a_request_is_its_text_its_function_and_what_counts_as_right() -> None:
    (request,) = parse_requests([QUESTION], [ANSWER])
    assert (request.id, request.text, request.function.name) == ("a", "Add 1", "add")
    assert request.accepted == {"n": [1], "to": ["", [2]]}


def test_the_prompt_is_a_signature_and_the_request() -> None:
    (request,) = parse_requests([QUESTION], [ANSWER])
    assert render(request) == "add(n: integer, to: array[integer] = None)\nAdd 1"


def test_the_prompt_lists_the_values_of_a_choice() -> None:
    question = QUESTION.replace(b'"integer", ', b'"string", "enum": ["one", "two"], ', 1)
    (request,) = parse_requests([question], [ANSWER])
    assert render(request).startswith("add(n: 'one' | 'two', to:")


@pytest.mark.parametrize(
    ("question", "answer", "says"),
    [
        (QUESTION[:-5], ANSWER, "request 1"),
        (QUESTION.replace(b'"function"', b'"other"'), ANSWER, "request 1 .* `function`"),
        (QUESTION, ANSWER.replace(b'"a"', b'"b"', 1), "no accepted answer for 'a'"),
        (QUESTION, b'{"id": "a", "ground_truth": []}', "answer 1"),
    ],
)
def test_a_damaged_line_is_named(question: bytes, answer: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_requests([question], [answer])


def test_without_a_network_the_error_says_where_the_wheel_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(StorageError, match=r"Without a network, put bfcl_eval.* into") as error:
        fetch_wheel(tmp_path / "cache")
    assert str(tmp_path / "cache") in str(error.value)
