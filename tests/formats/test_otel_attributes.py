"""Attributes that are read on from a span before are those that are read anew."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.formats import otel_attributes
from orbiter.train.formats.otel_attributes import Attributes
from orbiter.train.formats.otel_span import Sheet, sheet_of

KEYS = ["gen_ai.prompt.0.role", "gen_ai.prompt.0.content", "gen_ai.prompt.1.role", "model", "x.0.y"]
VALUES: list[dict[str, Any]] = [
    {"stringValue": "user"},
    {"stringValue": '}},{"key":"model"'},
    {"stringValue": '{"key"'},
    {"intValue": "1"},
    {"kvlistValue": {"values": [{"key": "model", "value": {"stringValue": "a"}}]}},
    {},
]
pairs = st.fixed_dictionaries({"key": st.sampled_from(KEYS), "value": st.sampled_from(VALUES)})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel_attributes, "SMALL", 0)


def raw(attributes: object, *, spaced: bool = True) -> msgspec.Raw:
    separators = (", ", ": ") if spaced else (",", ":")
    return msgspec.Raw(json.dumps(attributes, separators=separators).encode())


def told(sheet: Sheet) -> tuple[Any, ...]:
    """What is in a sheet, in its order, with its types."""
    spread = {
        group: {number: list(piece.rows.items()) for number, piece in places.items()}
        for group, places in sheet.spread.items()
    }
    return repr(list(sheet.single.items())), repr(spread)


@settings(max_examples=200)
@given(
    spans=st.lists(st.lists(pairs, max_size=6), min_size=2, max_size=4),
    kept=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    spaced=st.booleans(),
)
def test_reading_on_is_reading_anew(
    spans: list[list[dict[str, Any]]], kept: list[int], spaced: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otel_attributes, "SMALL", 0)
        known = Attributes()
        before: list[dict[str, Any]] = []
        for span, count in zip(spans, kept, strict=False):
            before = before[:count] + span
            data = raw(before, spaced=spaced)
            again, anew = known.read(data, "t", "chat"), Attributes().read(data, "t", "chat")
            assert told(again) == told(anew)


def test_what_two_spans_share_is_one_object(small: None) -> None:
    known = Attributes()
    first = [{"key": key, "value": VALUES[0]} for key in KEYS[:2]]
    one = known.read(raw([*first, {"key": "end", "value": VALUES[0]}]), "t", "chat")
    other = known.read(raw([*first, {"key": KEYS[2], "value": VALUES[0]}]), "t", "chat")
    apart = known.read(raw(first), "another trace", "chat")
    assert other.spread["gen_ai.prompt."][0] is one.spread["gen_ai.prompt."][0]
    assert apart.spread["gen_ai.prompt."][0] is not one.spread["gen_ai.prompt."][0]


def test_a_file_gives_what_a_live_span_gives(small: None) -> None:
    live = sheet_of(dict.fromkeys(KEYS, "user"))
    given = [{"key": key, "value": VALUES[0]} for key in KEYS]
    assert told(Attributes().read(raw(given), "t", "chat")) == told(live)


def test_what_is_remembered_stays_within_its_room(small: None) -> None:
    known = Attributes(room=1000)
    for number in range(50):
        text = {"stringValue": "x" * (number * 7 % 300)}
        known.read(
            raw([{"key": "gen_ai.prompt.0.content", "value": text}]), str(number % 9), "chat"
        )
        assert sum(len(data) for data, _ in known._last.values()) <= 1000
    assert known._last
