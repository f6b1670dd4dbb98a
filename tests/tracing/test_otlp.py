from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import DataError, TrainError
from orbiter.train.formats import read
from orbiter.train.json_files import walk as json_walk
from orbiter.train.json_files.source import OnError, Skipped, Source
from orbiter.train.tracing import otlp
from orbiter.train.trajectory import TrajectoryItem
from tests.tracing.spans import call, request, span
from tests.tracing.spans import read as read_otel
from tests.trajectory.generated import json_values

SAMPLES = Path(__file__).parents[1] / "formats/samples"
TRACES = sorted(
    path for kind in ("otel", "langfuse", "langsmith", "atif") for path in SAMPLES.glob(f"{kind}_*")
)


def ids(items: list[TrajectoryItem]) -> list[str]:
    return [item.id for item in items]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows so small that every boundary is met."""
    monkeypatch.setattr(json_walk, "CHUNK", 7)
    monkeypatch.setattr(otlp, "CHUNK", 7)
    monkeypatch.setattr(otlp, "LINE", 300)


ON_ERROR: tuple[OnError, ...] = ("raise", "skip")
LAYOUTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "one document": lambda docs: json.dumps(merged(docs)),
    "pretty": lambda docs: json.dumps(merged(docs), indent=2),
    "crlf": lambda docs: json.dumps(merged(docs), indent=1).replace("\n", "\r\n"),
    "lines": lambda docs: "\n".join(map(json.dumps, docs)) + "\n",
    "lines, the last one open": lambda docs: "\n".join(map(json.dumps, docs)),
    "blank lines": lambda docs: "\n\n" + "\n \n".join(map(json.dumps, docs)) + "\n\n",
    "array": json.dumps,
    "byte order mark": lambda docs: "\ufeff" + "\n".join(map(json.dumps, docs)),
}


def documents() -> list[dict[str, Any]]:
    linked = call("b", start=2) | {"links": [{"traceId": "x", "spanId": "y"}]}
    return [
        request(call("a", start=1, said='quotes " and \\ and {"traceId" €'), linked),
        {"resourceSpans": [], "other": {"deep": [[{}], "]}"]}},
        request(call("c", start=3), span("d"), call("e", start=4)),
    ]


def merged(docs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"resourceSpans": [one for doc in docs for one in doc["resourceSpans"]]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", ["small", "large"])
def test_every_layout_gives_the_same_items(
    layout: str, window: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain, other = tmp_path / "plain.jsonl", tmp_path / "other"
    plain.write_text(LAYOUTS["lines"](documents()))
    other.write_text(LAYOUTS[layout](documents()))
    expected = ids(read_otel(plain))
    if window == "small":
        request.getfixturevalue("small")
    assert ids(read_otel(other)) == expected
    assert len(expected) == 4


def test_a_span_that_is_no_span_does_not_hide_the_others(tmp_path: Path, small: None) -> None:
    docs = request(call("a", start=1), {"traceId": 5}, call("c", start=3))
    for text in (json.dumps(docs), json.dumps(docs, indent=1)):
        path = tmp_path / "x.json"
        path.write_text(text)
        skipped: list[Skipped] = []
        assert [item.step for item in read_otel(path, skipped)] == [0, 1]
        assert "Expected str, got int - at $.traceId" in skipped[0].reason
        assert "byte" in skipped[0].reason


def test_half_a_surrogate_costs_its_span_only(tmp_path: Path, small: None) -> None:
    text = json.dumps(request(call("a"), call("b", said="BROKEN"), call("c")))
    path = tmp_path / "x.json"
    skipped: list[Skipped] = []
    # The answer is JSON within JSON: the escape is of the outer text.
    path.write_text(text.replace("BROKEN", "\\ud83d"))
    assert len(read_otel(path, skipped)) == 2
    assert len(skipped) == 1


def test_the_line_of_a_bad_span_is_named_in_a_pretty_document(tmp_path: Path) -> None:
    text = json.dumps(request(call("a"), {"traceId": 5}), indent=1)
    path = tmp_path / "x.json"
    path.write_text(text)
    line = next(n for n, row in enumerate(text.splitlines(), 1) if '"traceId": 5' in row)
    with pytest.raises(DataError, match=rf"x\.json:{line - 1}: "):
        read_otel(path)


def test_a_torn_last_line_is_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    whole = json.dumps(request(call("a"))) + "\n"
    path = tmp_path / "x.jsonl"
    path.write_text(whole * 2 + whole[:50])
    skipped: list[Skipped] = []
    assert len(read_otel(path, skipped)) == 2
    assert (skipped[0].line, "ends in the middle" in skipped[0].reason) == (3, True)


def test_a_bad_line_in_the_middle_is_refused_alone(tmp_path: Path) -> None:
    whole = json.dumps(request(call("a"))) + "\n"
    path = tmp_path / "x.jsonl"
    path.write_text(whole + whole[:50] + "\n" + "no json\n" + whole)
    skipped: list[Skipped] = []
    assert len(read_otel(path, skipped)) == 2
    assert [one.line for one in skipped] == [2, 3]


@pytest.mark.parametrize("layout", ["lines", "one document"])
def test_memory_does_not_grow_with_the_file(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_walk, "CHUNK", 1 << 16)
    monkeypatch.setattr(otlp, "CHUNK", 1 << 16)
    monkeypatch.setattr(
        "orbiter.train.tracing.span.AttributeReader.__init__.__defaults__", (1 << 16,)
    )
    monkeypatch.setattr("orbiter.train.tracing.traces.Traces.__init__.__kwdefaults__", {
        "make": TrajectoryItem, "reward": None, "window": 1 << 18,
    })  # fmt: skip
    peaks = []
    # Large enough that what CPython keeps of freed tuples, up to 2,000 of a size, does not matter.
    for count in (300, 900):
        docs = [
            request(*(call(f"{n}-{m}", trace=str(n), said="x" * 2000) for m in range(4)))
            for n in range(count)
        ]
        path = tmp_path / str(count)
        path.write_text(LAYOUTS[layout](docs))
        tracemalloc.start()
        assert sum(1 for _ in _stream(path)) == 4 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # What is left is that of each of 65,536 traces the number of steps is remembered.
    assert peaks[1] < 2 * peaks[0] + 100_000
    assert peaks[1] < path.stat().st_size / 4


def _stream(path: Path) -> Iterator[TrajectoryItem]:
    from orbiter.train.tracing import otel

    return otel.read(Source(path, "raise", "error", []))


@pytest.mark.parametrize("name", ["otel", "langfuse", "langsmith", "atif"])
@settings(max_examples=40)
@given(data=st.binary(max_size=120) | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_at_all_gives_our_errors_only(
    name: str, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_bytes(data)
    for on_error in ON_ERROR:
        with suppress(TrainError):
            list(read(path, name, on_error=on_error))


@pytest.mark.parametrize("sample", TRACES, ids=lambda path: path.name)
@settings(max_examples=8)
@given(data=st.data())
def test_a_damaged_sample_gives_our_errors_only(
    sample: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / sample.name
    text = sample.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = at + data.draw(st.integers(0, 40))
        text = text[:at] + data.draw(st.binary(max_size=6)) + text[end:]
    path.write_bytes(text)
    for on_error in ON_ERROR:
        with suppress(TrainError):
            list(read(path, sample.name.partition("_")[0], on_error=on_error))


@pytest.mark.parametrize("sample", TRACES, ids=lambda path: path.name)
@settings(max_examples=12)
@given(data=st.data())
def test_a_sample_with_another_value_in_it_gives_our_errors_only(
    sample: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = sample.read_text()
    lines = text.splitlines() if sample.suffix == ".jsonl" else [text]
    docs = [mutated(json.loads(line), data) for line in lines]
    path = tmp_path_factory.mktemp("mutated") / sample.name
    path.write_text("\n".join(map(json.dumps, docs)))
    for on_error in ON_ERROR:
        with suppress(TrainError):
            list(read(path, sample.name.partition("_")[0], on_error=on_error))


def mutated(value: Any, data: st.DataObject) -> Any:  # noqa: ANN401
    """Exchange one value, somewhere, for any other; also within JSON that stands in a text."""
    if isinstance(value, str) and value[:1] in {"[", "{"} and data.draw(st.booleans()):
        return json.dumps(mutated(json.loads(value), data))
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: mutated(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], mutated(value[at], data), *value[at + 1 :]]
    return data.draw(json_values)
