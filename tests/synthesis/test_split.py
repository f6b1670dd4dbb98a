"""Nothing leaks, sizes come as near as the groups allow, and the same seed gives the same parts."""

import random
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.synthesis import SplitReport, split_dataset
from orbiter.train.synthesis.records import derive, value_of
from orbiter.train.synthesis.split import share_out
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from tests.synthesis.brute_force import close_pairs, corpus

RATIOS = [0.8, 0.1, 0.1]


def plain_rows(count: int) -> list[dict[str, object]]:
    return [{"state": f"s{number}"} for number in range(count)]


@pytest.mark.parametrize(
    ("count", "ratios", "sizes"),
    [
        (100, RATIOS, [80, 10, 10]),
        (1000, [0.29, 0.71], [290, 710]),
        (7, [0.5, 0.5], [4, 3]),
        (10, [0.34, 0.33, 0.33], [4, 3, 3]),
        (11, [0.7, 0.2, 0.1], [8, 2, 1]),
        (5, RATIOS, [3, 1, 1]),
        (4, [1.0], [4]),
        (4, [0.0, 1.0, 0.0], [0, 4, 0]),
        (0, RATIOS, [0, 0, 0]),
        (2, RATIOS, [2, 0, 0]),
    ],
)
def test_sizes_are_the_largest_remainders(
    count: int, ratios: list[float], sizes: list[int]
) -> None:
    parts = split_dataset(plain_rows(count), ratios)
    assert [len(part) for part in parts] == sizes
    assert sorted(str(row["state"]) for part in parts for row in part) == sorted(
        str(row["state"]) for row in plain_rows(count)
    )


def number_of_groups(count: int, together: Iterable[tuple[int, int]]) -> int:
    group = list(range(count))
    for one, other in together:
        group = [group[one] if each == group[other] else each for each in group]
    return len(set(group))


@given(seed=st.integers(0, 10_000), method=st.sampled_from(["exact", "hash"]))
def test_nothing_leaks(seed: int, method: str) -> None:
    draw = random.Random(seed)
    rows = [
        {"state": state, "task_id": draw.choice([None, draw.randrange(30)]), "number": number}
        for number, state in enumerate(corpus(seed, 60, [f"w{n}" for n in range(30)]))
    ]
    together = list(close_pairs([str(row["state"]) for row in rows], "0.8", 3))
    together += [
        (one, other)
        for one, other in combinations(range(60), 2)
        if rows[one]["task_id"] is not None and rows[one]["task_id"] == rows[other]["task_id"]
    ]
    report = SplitReport()
    few = number_of_groups(60, together)
    if method == "exact" and few < len(RATIOS):
        with pytest.raises(DataError, match=f"only {few} inseparable groups"):
            split_dataset(rows, RATIOS, seed=seed)
        return
    parts = split_dataset(rows, RATIOS, seed=seed, method=method, report=report)  # type: ignore[arg-type]  # one of two
    part_of = {row["number"]: part for part, inside in enumerate(parts) for row in inside}
    assert len(part_of) == 60
    assert [pair for pair in together if part_of[pair[0]] != part_of[pair[1]]] == []
    assert report.leaked == 0
    assert report.sizes == tuple(map(len, parts))
    assert report.ratios == tuple(len(part) / 60 for part in parts)
    assert method == "hash" or all(parts)


def test_a_leak_would_be_counted() -> None:
    rows = [{"state": "s0", "task_id": 1}, {"state": "s0", "task_id": 1}]
    report = SplitReport()
    split_dataset(rows, [1.0], report=report)
    assert (report.groups, report.biggest_group, report.leaked) == (1, 2, 0)
    from orbiter.train.synthesis.similarity import Measure
    from orbiter.train.synthesis.split import View, _close, _leaks

    assert _leaks([0, 1], [[1, 1], [None, None]]) == 1
    assert _close([0, 1], View(Measure(0.8), [0, 1], ["s0", "S0 "])) == 1


def test_each_key_keeps_its_rows_together() -> None:
    for key in ("task_id", "episode_id"):
        items = [TrajectoryItem(f"s{n}", "a", 1.0, **{key: f"g{n // 4}"}) for n in range(80)]  # type: ignore[arg-type]  # a name
        parts = split_dataset(items, RATIOS)
        assert [len(part) for part in parts] == [64, 8, 8]
        groups = [{value_of(item, key) for item in part} for part in parts]
        assert sum(map(len, groups)) == 20
        assert len(split_dataset(items, RATIOS, group_by=())[0]) == 64


def test_a_derived_row_stays_with_its_ancestors() -> None:
    items = [TrajectoryItem(f"s{n}", "a", 1.0) for n in range(40)]
    noisy = [
        cast("TrajectoryItem", derive(item, {"state": f"other {n}"}, op="noise", seed=n))
        for n, item in enumerate(items)
    ]
    for part in split_dataset([*items, *noisy], [0.5, 0.5]):
        numbers = Counter(item.state.removeprefix("other ").removeprefix("s") for item in part)
        assert set(numbers.values()) == {2}


def test_states_that_are_nearly_the_same_stay_together_unless_told() -> None:
    state = "the user asks for the weather in a town by the sea and for the tides there in winter"
    rows = [{"state": f"{state} {n}"} for n in range(10)] + plain_rows(10)
    report = SplitReport()
    parts = split_dataset(rows, [0.5, 0.5], report=report)
    assert sorted(sum("weather" in str(row["state"]) for row in part) for part in parts) == [0, 10]
    assert (report.biggest_group, report.groups) == (10, 11)
    cut = split_dataset(rows, [0.5, 0.5], near_duplicates=None)
    assert all(0 < sum("weather" in str(row["state"]) for row in part) < 10 for part in cut)


def test_groups_too_few_are_named_with_the_way_out() -> None:
    rows = [{"state": "same"} for _ in range(20)]
    with pytest.raises(
        DataError, match=r"20 rows form only 1 inseparable groups.*near_duplicates=None"
    ):
        split_dataset(rows, RATIOS)


def test_every_part_gets_a_group_where_there_are_as_many_as_parts() -> None:
    rows = [{"state": f"s{n}", "task_id": n % 3} for n in range(30)]
    assert [len(part) for part in split_dataset(rows, RATIOS)] == [10, 10, 10]
    lopsided = [{"state": f"s{n}", "task_id": min(n, 2)} for n in range(30)]
    assert sorted(len(part) for part in split_dataset(lopsided, RATIOS)) == [1, 1, 28]


def test_strata_are_shared_out_alike() -> None:
    rows = [{"state": f"s{n}", "kind": "rare" if n % 10 == 0 else "common"} for n in range(200)]
    parts = split_dataset(rows, RATIOS, stratify="kind")
    assert [Counter(str(row["kind"]) for row in part) for part in parts] == [
        {"common": 144, "rare": 16},
        {"common": 18, "rare": 2},
        {"common": 18, "rare": 2},
    ]


def test_many_small_strata_leave_the_sizes_right() -> None:
    rows = [{"state": f"s{n}", "kind": n // 4} for n in range(400)]
    sizes = [len(part) for part in split_dataset(rows, RATIOS, stratify="kind")]
    assert sizes == pytest.approx([320, 40, 40], abs=1)


def test_strata_and_groups_go_together() -> None:
    rows = [{"state": f"s{n}", "kind": n // 10 % 2, "task_id": n // 5} for n in range(400)]
    parts = split_dataset(rows, RATIOS, stratify="kind")
    for part, share in zip(parts, RATIOS, strict=True):
        kinds = Counter(row["kind"] for row in part)
        assert kinds == {0: 200 * share, 1: 200 * share}


@given(
    totals=st.dictionaries(st.integers(), st.integers(0, 50), max_size=8),
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
)
def test_shares_add_up_and_a_weight_of_nought_gets_nothing(
    totals: dict[int, int], weights: list[int]
) -> None:
    shares = share_out(totals, dict.fromkeys(totals, weights))
    assert {label: sum(share) for label, share in shares.items()} == totals
    sums = [sum(share[part] for share in shares.values()) for part in range(len(weights))]
    for part, weight in enumerate(weights):
        due = sum(totals.values()) * weight / sum(weights)
        assert abs(sums[part] - due) < 1 + 1e-9
        assert weight or sums[part] == 0


def test_the_seed_decides() -> None:
    rows = plain_rows(100)
    assert split_dataset(rows, RATIOS, seed=1) == split_dataset(rows, RATIOS, seed=1)
    assert split_dataset(rows, RATIOS, seed=1) != split_dataset(rows, RATIOS, seed=2)
    for part in split_dataset(rows, RATIOS, seed=1):
        assert part == sorted(part, key=rows.index)


def test_by_hash_no_row_moves_when_rows_are_added() -> None:
    rows = [{"state": f"s{n}", "task_id": f"t{n // 3}"} for n in range(600)]
    early = split_dataset(rows[:400], RATIOS, method="hash")
    late = split_dataset(rows, RATIOS, method="hash")
    assert [[row for row in part if row in rows[:400]] for part in late] == early
    assert [len(part) / 600 for part in late] == pytest.approx(RATIOS, abs=0.06)
    assert split_dataset(rows, RATIOS, method="hash", seed=1) != late


def test_a_data_set_is_split_into_data_sets() -> None:
    data = TrajectoryDataset()
    data.extend(TrajectoryItem(f"s{n}", "a", 0.5) for n in range(10))
    train, val, test = split_dataset(data, ratios=RATIOS)
    assert all(isinstance(part, TrajectoryDataset) for part in (train, val, test))
    assert [len(part) for part in (train, val, test)] == [8, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [0.8, 0.1]}, r"ratios must add up to 1, got .* = 0.9"),
        ({"ratios": [1.2, -0.2]}, "ratios must be one or more shares"),
        ({"ratios": []}, "ratios must be one or more shares"),
        ({"method": "random"}, "method must be 'exact' or 'hash'"),
        ({"near_duplicates": 2.0}, "threshold must lie in"),
    ],
)
def test_a_setting_without_meaning_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_dataset(plain_rows(4), **options)  # type: ignore[arg-type]  # wrong on purpose


def test_a_key_that_cannot_be_compared_or_raises_is_named() -> None:
    with pytest.raises(DataError, match=r"row 0: key 'tags' gives .* cannot be compared"):
        split_dataset([{"state": "s", "tags": ["x"]}], [1.0], group_by=["tags"])
    with pytest.raises(CallbackError, match="raised KeyError"):
        split_dataset([{"state": "s"}], [1.0], group_by=[lambda row: row["topic"]])  # type: ignore[index]  # mappings
