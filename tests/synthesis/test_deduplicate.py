"""What is kept has no near-duplicate, what is dropped has a kept one, whatever the kind of data."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.synthesis import CurationReport, deduplicate
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from tests.synthesis.brute_force import close_pairs, corpus, shingle_set

LONG = "please look up the weather in Vienna for tomorrow and tell me what to wear"


@given(
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from(["0.4", "0.7", "0.9", "1"]),
    keep=st.sampled_from(["best", "first", "last", "longest"]),
)
def test_no_two_kept_are_close_and_every_dropped_one_has_a_kept_witness(
    seed: int, threshold: str, keep: str
) -> None:
    draw = random.Random(seed)
    texts = corpus(seed, 30, ["a", "b", "c"])
    rows = [{"state": text, "reward": draw.choice([None, 0, 1])} for text in texts]
    report = CurationReport()
    kept = deduplicate(rows, float(threshold), ngram=2, keep=keep, report=report)  # type: ignore[arg-type]  # one of four
    assert close_pairs([str(row["state"]) for row in kept], threshold, 2) == {}
    gone = {drop.index: drop for drop in report.dropped}
    assert kept == [row for index, row in enumerate(rows) if index not in gone]
    for index, drop in gone.items():
        assert drop.witness is not None
        assert drop.witness not in gone
        one, other = shingle_set(texts[index], 2), shingle_set(texts[drop.witness], 2)
        assert drop.similarity == len(one & other) / len(one | other)
        assert Fraction(len(one & other), len(one | other)) >= Fraction(threshold)


def test_several_answers_to_one_question_all_stay() -> None:
    rows = [{"input": "2+3?", "output": text} for text in ("5", "five", "5")]
    assert deduplicate(rows) == rows[:2]
    assert deduplicate(rows, key="input") == rows[:1]
    assert deduplicate(rows, key=lambda row: str(row["output"])) == rows[:2]  # type: ignore[index]  # mappings


def test_likeness_is_not_passed_on() -> None:
    words = [f"w{number}" for number in range(12)]
    rows = [{"state": " ".join(words[first : first + 10])} for first in (0, 1, 2)]
    assert deduplicate(rows, 0.8, ngram=1) == [rows[0], rows[2]]


@pytest.mark.parametrize(
    ("keep", "stays"), [("best", 2), ("first", 0), ("last", 3), ("longest", 1)]
)
def test_the_row_asked_for_stays(keep: str, stays: int) -> None:
    rewards = [0.5, None, 0.9, 0.9]
    items = [TrajectoryItem(LONG, "wear wool " * (n == 1), r) for n, r in enumerate(rewards)]
    assert deduplicate(items, 0.7, keep=keep) == [items[stays]]  # type: ignore[arg-type]  # one of four


def test_nine_of_ten_shared_reach_nine_tenths() -> None:
    words = [f"w{number}" for number in range(12)]
    rows = [{"state": " ".join(words)}, {"state": " ".join(words[:-1])}]
    assert len(deduplicate(rows, 0.9)) == 1
    assert len(deduplicate(rows, 0.91)) == 2


def test_a_reference_set_keeps_its_likes_out() -> None:
    test_set = [TrajectoryItem(LONG, ""), TrajectoryItem(LONG, "")]
    rows = [{"input": "something else"}, {"input": LONG.upper()}, {"input": "something else"}]
    report = CurationReport()
    assert deduplicate(rows, against=test_set, report=report) == rows[:1]
    assert [(d.index, d.reason, d.witness) for d in report.dropped] == [
        (1, "duplicate_of_reference", 0),
        (2, "duplicate", 0),
    ]
    assert report.dropped[0].detail == "shares 13 of 13 n-grams (1.000) with reference row 0"


def test_a_data_set_stays_one_and_is_not_touched() -> None:
    data = TrajectoryDataset()
    data.extend([TrajectoryItem(text, "a", 1.0) for text in (LONG, LONG, "b")])
    unique = deduplicate(data, threshold=0.9)
    assert isinstance(unique, TrajectoryDataset)
    assert [item.state for item in unique] == [LONG, "b"]
    assert len(data) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"ngram": 0}, "ngram must be at least 1"),
        ({"keep": "bets"}, "keep must be one of .* did you mean 'best'"),
    ],
)
def test_a_setting_without_meaning_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deduplicate([{"state": "s"}], **options)  # type: ignore[arg-type]  # wrong on purpose


def test_a_key_without_text_is_named() -> None:
    with pytest.raises(DataError, match="row 0: key 'topic' must give text, got None"):
        deduplicate([{"state": "s"}], key="topic")
    with pytest.raises(CallbackError, match="key function raised KeyError"):
        deduplicate([{"state": "s"}], key=lambda row: str(row["topic"]))  # type: ignore[index]  # mappings


@pytest.mark.slow
def test_ten_thousand_rows_go_through_the_compiled_path_alike() -> None:
    rows = [{"state": text} for text in corpus(5, 10_000, [f"w{n}" for n in range(500)])]
    report = CurationReport()
    kept = deduplicate(rows, 0.8, report=report)
    sets = [shingle_set(row["state"], 3) for row in rows]
    holders: dict[str, set[int]] = {}
    gone = {drop.index: drop for drop in report.dropped}
    for index, shingles in enumerate(sets):
        near = set().union(*(holders.get(shingle, set()) for shingle in shingles))
        close = [n for n in near if len(shingles & sets[n]) >= 0.8 * len(shingles | sets[n])]
        assert (index in gone) == bool(close)
        if index not in gone:
            for shingle in shingles:
                holders.setdefault(shingle, set()).add(index)
    assert len(kept) == 10_000 - len(gone)
    assert len(gone) > 1_000
