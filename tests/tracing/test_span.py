"""Attributes that are read on from a span before are those that are read anew."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from orbiter.train.tracing import span as otel_span
from orbiter.train.tracing.span import AttributeReader, SpanAttributes, sorted_attributes

KEYS = ["gen_ai.prompt.0.role", "gen_ai.prompt.0.content", "gen_ai.prompt.1.role", "model", "x.0.y"]
VALUES: list[dict[str, Any]] = [
    {"stringValue": "user"},
    {"stringValue": '}},{"key":"model"'},
    {"stringValue": '{"key"'},
    {"intValue": "1"},
    {"kvlistValue": {"values": [{"key": "model", "value": {"stringValue": "a"}}]}},
    {},
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel_span, "SMALL", 0)


def raw(attributes: object, *, spaced: bool = True) -> msgspec.Raw:
    separators = (", ", ": ") if spaced else (",", ":")
    return msgspec.Raw(json.dumps(attributes, separators=separators).encode())


def written(attributes: SpanAttributes) -> tuple[Any, ...]:
    """Return the attributes as text, in their order and with their types."""
    spread = {
        group: {number: list(piece.rows.items()) for number, piece in places.items()}
        for group, places in attributes.spread.items()
    }
    return repr(list(attributes.single.items())), repr(spread)


@pytest.mark.parametrize("spaced", [True, False])
def test_reading_on_is_reading_anew(spaced: bool, small: None) -> None:
    rng = random.Random(0)
    for _ in range(1000):
        known = AttributeReader()
        span: list[dict[str, Any]] = []
        for _ in range(3):
            more = [{"key": rng.choice(KEYS), "value": rng.choice(VALUES)} for _ in range(4)]
            span = span[: rng.randint(0, 6)] + more[: rng.randint(0, 4)]
            data = raw(span, spaced=spaced)
            again, anew = known.read(data, "t", "chat"), AttributeReader().read(data, "t", "chat")
            assert written(again) == written(anew)


def test_what_two_spans_share_is_one_object(small: None) -> None:
    known = AttributeReader()
    first = [{"key": key, "value": VALUES[0]} for key in KEYS[:2]]
    one = known.read(raw([*first, {"key": "end", "value": VALUES[0]}]), "t", "chat")
    other = known.read(raw([*first, {"key": KEYS[2], "value": VALUES[0]}]), "t", "chat")
    apart = known.read(raw(first), "another trace", "chat")
    assert other.spread["gen_ai.prompt."][0] is one.spread["gen_ai.prompt."][0]
    assert apart.spread["gen_ai.prompt."][0] is not one.spread["gen_ai.prompt."][0]


def test_a_file_gives_what_a_live_span_gives(small: None) -> None:
    live = sorted_attributes(dict.fromkeys(KEYS, "user"))
    given = [{"key": key, "value": VALUES[0]} for key in KEYS]
    assert written(AttributeReader().read(raw(given), "t", "chat")) == written(live)


def test_what_is_remembered_stays_within_its_room(small: None) -> None:
    known = AttributeReader(room=1000)
    for number in range(50):
        text = {"stringValue": "x" * (number * 7 % 300)}
        known.read(
            raw([{"key": "gen_ai.prompt.0.content", "value": text}]), str(number % 9), "chat"
        )
        assert sum(len(data) for data, _ in known._last.values()) <= 1000
    assert known._last
