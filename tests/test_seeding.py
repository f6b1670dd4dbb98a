import sys

from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.seeding import sub_random, sub_seed
from tests.children import run_child


def test_a_sub_seed_is_the_same_in_every_process() -> None:
    code = "from orbiter.train.seeding import sub_seed; print(sub_seed(7, 'noise', 3))"
    out = [
        run_child(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, check=True
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert {int(line) for line in out} == {sub_seed(7, "noise", 3)}


def test_the_value_is_frozen_for_all_releases() -> None:
    assert sub_seed(0, "sample", 1) == 7729317033448633970


@given(st.integers(), st.lists(st.one_of(st.text(), st.integers()), max_size=4))
def test_a_sub_seed_is_a_63_bit_number_and_tells_keys_apart(
    seed: int, key: list[str | int]
) -> None:
    value = sub_seed(seed, *key)
    assert 0 <= value < 2**63
    assert value != sub_seed(seed, *key, "more")
    assert value != sub_seed(seed + 1, *key)


def test_the_text_1_and_the_number_1_are_different_keys() -> None:
    assert sub_seed(0, "1") != sub_seed(0, 1)
    assert sub_seed(0, "ab", "c") != sub_seed(0, "a", "bc")


def test_streams_are_independent_of_each_other() -> None:
    first = sub_random(0, "a")
    alone = [sub_random(0, "b").random() for _ in range(3)]
    first.random()
    assert [sub_random(0, "b").random() for _ in range(3)] == alone
