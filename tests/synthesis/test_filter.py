"""Only rows that score well enough stay, and every other one says why it went."""

import math

import pytest

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.synthesis import CurationReport, filter_by_score
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

ROWS = [{"input": f"q{place}", "score": score} for place, score in enumerate([0.9, 0.1, None, 0.5])]


def test_a_score_at_the_minimum_stays() -> None:
    assert filter_by_score(ROWS, min_score=0.5) == [ROWS[0], ROWS[3]]


def test_a_data_set_stays_a_data_set() -> None:
    data = TrajectoryDataset()
    data.extend([TrajectoryItem("s", "a", reward) for reward in (0.7, 0.2, None)])
    kept = filter_by_score(data, min_score=0.7)
    assert isinstance(kept, TrajectoryDataset)
    assert [item.reward for item in kept] == [0.7]
    assert (len(data), len(data.waiting)) == (2, 1)
    assert [item.reward for item in filter_by_score(data, 0.7, missing="keep").waiting] == [None]


def test_every_row_left_out_has_its_reason() -> None:
    report = CurationReport()
    filter_by_score(ROWS, 0.2, top_k=1, report=report)
    told = [(drop.index, drop.reason, drop.detail) for drop in report.dropped]
    assert told == [
        (1, "score", "score 0.1 is below 0.2"),
        (2, "missing", "has no score"),
        (3, "rank", "score 0.5 is not among the 1 best"),
    ]
    assert [drop.row for drop in report.dropped] == [ROWS[1], ROWS[2], ROWS[3]]
    assert report.by_reason == {"score": 1, "missing": 1, "rank": 1}


def test_the_best_k_keep_their_order_and_the_earlier_of_equals() -> None:
    rows = [{"state": f"s{n}", "reward": score} for n, score in enumerate([1, 3, 2, 3, 2])]
    assert [row["state"] for row in filter_by_score(rows, top_k=3)] == ["s1", "s2", "s3"]
    assert filter_by_score(rows, top_k=0) == []


@pytest.mark.parametrize(("quantile", "count"), [(0.0, 100), (0.07, 93), (0.75, 25), (1.0, 1)])
def test_a_quantile_keeps_the_best_share(quantile: float, count: int) -> None:
    rows = [{"state": "s", "reward": float(place)} for place in range(100)]
    assert filter_by_score(rows, quantile=quantile) == rows[100 - count :]


def test_nan_counts_as_missing() -> None:
    rows = [{"state": "s", "reward": math.nan}, {"state": "t", "reward": 1.0}]
    assert filter_by_score(rows, 0.5) == rows[1:]
    assert filter_by_score(rows, 0.5, missing="keep") == rows
    with pytest.raises(DataError, match="row 0 has no score"):
        filter_by_score(rows, 0.5, missing="raise")


def test_a_key_names_a_field_or_is_a_function() -> None:
    rows = [{"state": "s", "metadata": {"judge": 0.2}}, {"state": "t", "metadata": {"judge": 0.8}}]
    assert filter_by_score(rows, 0.5, key="judge") == rows[1:]
    assert filter_by_score(ROWS, 2, key=lambda row: len(str(row["input"]))) == ROWS  # type: ignore[index]  # mappings


def test_a_key_that_raises_or_gives_no_number_is_named() -> None:
    with pytest.raises(CallbackError, match="key function raised ZeroDivisionError"):
        filter_by_score(ROWS, 0.5, key=lambda _: 1 / 0)
    with pytest.raises(DataError, match="row 0: a score must be a number or None, got 'q0'"):
        filter_by_score(ROWS, 0.5, key="input")


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({}, "needs min_score, top_k or quantile"),
        ({"min_score": math.nan}, "min_score must be a number"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"quantile": 1.5}, "quantile must lie in"),
        ({"min_score": 0.5, "missing": "dropp"}, "did you mean 'drop'"),
    ],
)
def test_a_criterion_without_meaning_is_refused(criteria: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filter_by_score(ROWS, **criteria)  # type: ignore[arg-type]  # wrong on purpose


def test_nothing_in_nothing_out() -> None:
    assert filter_by_score([], 0.5) == []
