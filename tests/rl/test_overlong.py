from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.rl.overlong import overlong_penalty


def by_hand(length: int, longest: int, buffer: int, penalty: float) -> float:
    """Equation 13 of DAPO, case by case."""
    if length <= longest - buffer:
        return 0.0
    if length <= longest:
        return penalty * ((longest - buffer) - length) / buffer
    return -penalty


@given(
    st.integers(1, 40).flatmap(
        lambda longest: st.tuples(st.just(longest), st.integers(1, longest))
    ),
    st.lists(st.integers(0, 60), min_size=1, max_size=8),
    st.floats(0.01, 5),
)
def test_the_penalty_is_that_of_the_paper(
    sizes: tuple[int, int], lengths: list[int], penalty: float
) -> None:
    longest, buffer = sizes
    have = overlong_penalty(
        torch.tensor(lengths), max_length=longest, buffer=buffer, penalty=penalty
    )
    want = [by_hand(length, longest, buffer, penalty) for length in lengths]
    assert have.tolist() == pytest.approx(want, rel=1e-12, abs=1e-12)


@given(
    st.integers(1, 64).flatmap(
        lambda longest: st.tuples(
            st.just(longest), st.integers(1, longest), st.integers(0, longest)
        )
    ),
    st.floats(0.01, 5),
)
def test_the_penalty_is_that_of_verl(sizes: tuple[int, int, int], penalty: float) -> None:
    """The lines of verl 0.9.1, experimental/reward_loop/reward_manager/dapo.py; no answer is longer
    than max_resp_len there.
    """
    max_resp_len, overlong_buffer_len, valid_response_length = sizes
    expected_len = max_resp_len - overlong_buffer_len
    exceed_len = valid_response_length - expected_len
    overlong_reward = min(-exceed_len / overlong_buffer_len * penalty, 0)
    have = overlong_penalty(
        torch.tensor([valid_response_length]),
        max_length=max_resp_len,
        buffer=overlong_buffer_len,
        penalty=penalty,
    )
    assert have.item() == pytest.approx(overlong_reward, rel=1e-12, abs=1e-12)
