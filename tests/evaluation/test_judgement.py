"""The record that people and judges write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import DataError
from orbiter.train.evaluation import Judgement, judgement_lines, read_judgements

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rater = text.filter(lambda name: bool(name.strip()))
single = st.builds(
    Judgement,
    rater=rater,
    kind=st.just("rating"),
    value=st.floats(allow_nan=False, allow_infinity=False),
    task=text,
    answers=st.tuples(text),
    note=text,
    seconds=st.one_of(st.none(), st.floats(0, 1e6)),
)
pair = st.builds(
    Judgement,
    rater=rater,
    kind=st.just("better"),
    value=st.sampled_from([0.0, 0.5, 1.0]),
    task=text,
    answers=st.tuples(text, text),
    shown=st.sampled_from([(), (0, 1), (1, 0)]),
)
undecided = st.builds(
    Judgement,
    rater=rater,
    kind=st.just("right"),
    value=st.none(),
    task=text,
    answers=st.tuples(text),
    cause=rater,
)
base: dict[str, Any] = {"rater": "ann", "kind": "right", "value": 1, "task": "q", "answers": ("a",)}


@given(st.lists(st.one_of(single, pair, undecided), min_size=1, max_size=4))
def test_a_file_of_judgements_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, judgements: list[Judgement]
) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in judgement_lines(judgements)))
    assert list(read_judgements(path)) == judgements


def test_the_subject_depends_on_what_was_judged_alone() -> None:
    one = Judgement(**base)
    assert one.subject == Judgement(**{**base, "rater": "bo", "value": 0, "note": "n"}).subject
    for change in ({"task": "r"}, {"answers": ("b",)}, {"kind": "rating"}):
        assert one.subject != Judgement(**{**base, **change}).subject


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rater": " "}, "name of its rater"),
        ({"rater": 1}, "rater of a judgement must be a text"),
        ({"kind": "best"}, "must be one of rating, right, better, got 'best'"),
        ({"value": 0.5}, "one of 0, 1, got 0.5"),
        ({"value": float("nan")}, "finite number"),
        ({"value": True}, "finite number"),
        ({"value": None}, "needs a cause"),
        ({"kind": "better", "value": 2, "answers": ("a", "b")}, "one of 0, 0.5, 1, got 2"),
        ({"kind": "better"}, "has 2 answers, got 1"),
        ({"answers": ("a", "b")}, "has 1 answer, got 2"),
        ({"answers": ["a"]}, "tuple of texts"),
        ({"answers": (1,)}, "an answer of a judgement must be a text"),
        ({"answers": ("\ud800",)}, "half a surrogate pair"),
        ({"shown": (True,)}, "places of answers"),
        ({"kind": "better", "answers": ("a", "b"), "shown": (0, 2)}, "places of answers"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": "fast"}, "seconds"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Judgement(**{**base, **change})


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"rater": "a", "kind": "right", "value": 1, "task": "q", "answers": ["x"]}\n'
        '{"rater": "a", "kind": "right", "value": 1, "task": "q"}\n'
    )
    with pytest.raises(DataError, match=r"labels\.jsonl:2: .*needs the keys answers"):
        list(read_judgements(path))
    path.write_text('{"rater": "a", "kind": "right", "value": 1, "task": "q", "answers": "x"}\n')
    with pytest.raises(DataError, match="answers of a judgement must be a list, got 'x'"):
        list(read_judgements(path))
