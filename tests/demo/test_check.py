from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.demo.agent import right_call
from orbiter.train.demo.check import score, verdict
from orbiter.train.demo.requests import ToolRequest

TABLE = Path(__file__).with_name("verdicts.json.gz")


def a_request(kind: str, accepted: list[object], **more: object) -> ToolRequest:
    return msgspec.convert(
        {
            "id": "one",
            "text": "",
            "function": {
                "name": "f",
                "description": "",
                "parameters": {"properties": {"x": {"type": kind, **more}}, "required": []},
            },
            "accepted": {"x": accepted},
        },
        ToolRequest,
    )


def test_verdicts_are_those_of_the_leaderboards_own_checker(requests: list[ToolRequest]) -> None:
    by_id = {request.id: request for request in requests}
    table = json.loads(gzip.decompress(TABLE.read_bytes()))
    assert sum(right for _, _, right in table) >= 1000
    assert sum(not right for _, _, right in table) >= 1000
    assert [row for row in table if verdict(row[1], by_id[row[0]]).right != row[2]] == []


def test_only_a_right_call_scores_one(requests: list[ToolRequest]) -> None:
    by_id = {request.id: request for request in requests}
    for key, reply, right in json.loads(gzip.decompress(TABLE.read_bytes()))[::3]:
        got = score(reply, by_id[key])
        assert (got == 1) == right
        assert right or 0 <= got <= 0.6


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("f(x=3)", 1.0),
        ("f(x=4)", 0.2),
        ("f(x=3, y=1)", 0.4),
        ("f()", 0.2),
        ("g(x=3)", 0.1),
        ("f(x=3), f(x=3)", 0.0),
        ("Sure!", 0.0),
    ],
)
def test_a_wrong_call_scores_by_what_is_right_in_it(reply: str, expected: float) -> None:
    assert score(reply, a_request("integer", [3])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "accepted", "reply", "right"),
    [
        ("float", [2.0], "f(x=2)", True),
        ("integer", [2], "f(x=2.0)", False),
        ("integer", [2], "f(x='2')", False),
        ("boolean", [True], "f(x=1)", False),
        ("string", ["New York, NY"], "f(x='new-york NY')", True),
        ("string", ["a", ""], "f()", True),
        ("string", ["a"], "f()", False),
        ("integer", [""], "f(x='')", False),
        ("dict", [{"a": [1, 2]}], "f(x={'a': 2})", True),
        ("dict", [{"a": [1, 2]}], "f(x={'a': 3})", False),
        ("dict", [{"a": [1]}], "f(x={'a': 1, 'b': 1})", False),
    ],
)
def test_a_value_is_compared_by_its_kind(
    kind: str, accepted: list[object], reply: str, right: bool
) -> None:
    assert verdict(reply, a_request(kind, accepted)).right is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [("f(x=['A b', 'c'])", True), ("f(x=['c', 'ab'])", False), ("f(x=('ab', 'c'))", False)],
)
def test_a_list_keeps_its_order(reply: str, right: bool) -> None:
    request = a_request("array", [["ab", "c"]], items={"type": "string"})
    assert verdict(reply, request).right is right


def test_what_the_schema_requires_may_not_be_left_away() -> None:
    free = a_request("integer", [3, ""])
    parameters = replace(free.function.parameters, required=["x"])
    bound = replace(free, function=replace(free.function, parameters=parameters))
    assert verdict("f()", free).right
    assert not verdict("f()", bound).right


def test_a_wrong_reply_comes_with_its_reason() -> None:
    request = a_request("integer", [3])
    assert verdict("f(x=4)", request).reason == "x=4 is not one of [3]"
    assert verdict("g(x=3)", request).reason == "calls 'g', not 'f'"


@pytest.mark.parametrize(
    "reply",
    [
        "f(x=__import__('os').system('true'))",
        "f(x=(lambda: 3)())",
        "f(x=9**9**9)",
        "f(x=" + "(" * 300 + "3" + ")" * 300 + ")",
        "f(x=" + "-" * 3000 + "3)",
        "f(x=" + "9" * 3990 + ")",
        "f(x='\0')",
        "f(x=3)" * 1000,
        "f(x={[1]: 2})",
    ],
)
def test_hostile_replies_are_wrong_and_never_run(reply: str) -> None:
    assert not verdict(reply, a_request("integer", [3])).right


@given(reply=st.text(max_size=60) | st.from_regex(r"f\(x=[^)]{0,20}\)", fullmatch=True))
def test_any_text_gets_a_verdict(reply: str) -> None:
    for kind in ("integer", "float", "string", "dict"):
        assert verdict(reply, a_request(kind, [])).right is False


def test_every_request_has_a_right_call(requests: list[ToolRequest]) -> None:
    assert [one.id for one in requests if not verdict(right_call(one), one).right] == []
