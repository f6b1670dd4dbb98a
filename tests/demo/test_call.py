from __future__ import annotations

import pytest

from orbiter.train.demo.call import parse_call
from orbiter.train.errors import DataError


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("3", 3),
        ("-2.5", -2.5),
        ("'a' + 'b'", "ab"),
        ("2 * 3 + 1", 7),
        ("[1, (2, 'x')]", [1, (2, "x")]),
        ("{'a': [True, None]}", {"a": [True, None]}),
        ("metres", "metres"),
        ("g(1)", "g(1)"),
        ("g(n=1)", {"g": {"n": 1}}),
        ("a.b[0]", "a.b[0]"),
        ("...", "..."),
    ],
)
def test_a_value_is_read_as_what_it_says(source: str, value: object) -> None:
    call = parse_call(f"pack.f(x={source})")
    assert (call.name, call.arguments) == ("pack.f", {"x": value})


@pytest.mark.parametrize("reply", ["```\nf(x=1)\n```", "[f(x=1)]", " f(x=1)\n"])
def test_what_stands_around_a_call_does_not_count(reply: str) -> None:
    assert parse_call(reply).arguments == {"x": 1}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("Certainly! f(x=1)", "not a call"),
        ("f(x=1)\nf(x=2)", "not a call"),
        ("f(x=1), f(x=2)", "expected one call, got 2"),
        ("[]", "expected one call, got 0"),
        ("f(x=y + 1)", "not allowed in arithmetic"),
        ("f(x=2 ** 99999)", "beyond 64"),
        ("f(x=1 / 0)", "not a call"),
        ("f(x={1, 2})", "a Set is not a value"),
        ("f" * 5000, "5000 characters"),
    ],
)
def test_what_is_no_call_is_refused_with_its_reason(reply: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_call(reply)
