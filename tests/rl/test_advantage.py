from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import DataError
from orbiter.train.rl import explained_variance, gae, group_relative_advantage, token_reward, whiten
from tests.rl import by_hand
from tests.rl.batches import columns, mask_of, padded, ragged, rows_of

SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4)
UNIT = st.floats(0.0, 1.0)


@given(seed=SEEDS, prompts=st.integers(1, 4), group=st.integers(2, 9))
def test_group_advantage_is_the_formula(seed: int, prompts: int, group: int) -> None:
    reward = ragged(seed, "reward", -3, 3, [group] * prompts)
    got = group_relative_advantage(torch.tensor(reward, dtype=torch.float64)).tolist()
    for got_row, want_row in zip(got, by_hand.group_advantage(reward), strict=True):
        assert got_row == pytest.approx(want_row, rel=1e-10, abs=1e-12)


def test_group_advantage_takes_the_sample_standard_deviation() -> None:
    got = group_relative_advantage(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert got.tolist()[0] == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], rel=1e-5)


@given(seed=SEEDS, shift=st.floats(-100, 100))
def test_group_advantage_does_not_see_a_shift_of_all_rewards(seed: int, shift: float) -> None:
    reward = torch.tensor(ragged(seed, "reward", -3, 3, [5, 5]), dtype=torch.float64)
    torch.testing.assert_close(
        group_relative_advantage(reward + shift),
        group_relative_advantage(reward),
        rtol=1e-7,
        atol=1e-7,
    )


@given(seed=SEEDS, factor=st.floats(0.1, 100))
def test_group_advantage_does_not_see_the_scale_unless_asked_to(seed: int, factor: float) -> None:
    reward = torch.tensor(ragged(seed, "reward", -3, 3, [5, 5]), dtype=torch.float64)
    torch.testing.assert_close(
        group_relative_advantage(reward * factor, eps=0.0),
        group_relative_advantage(reward, eps=0.0),
    )
    torch.testing.assert_close(
        group_relative_advantage(reward * factor, scale="none"),
        group_relative_advantage(reward, scale="none") * factor,
    )


@given(seed=SEEDS)
def test_group_advantage_follows_its_responses_and_stays_in_its_group(seed: int) -> None:
    reward = torch.tensor(ragged(seed, "reward", -3, 3, [6, 6]), dtype=torch.float64)
    order = torch.tensor(random.Random(seed).sample(range(6), 6))
    shuffled = group_relative_advantage(reward[:, order])
    torch.testing.assert_close(shuffled, group_relative_advantage(reward)[:, order])
    alone = group_relative_advantage(reward[:1])
    torch.testing.assert_close(alone, group_relative_advantage(reward)[:1])


@pytest.mark.parametrize(("count", "reward"), [(15, 1.96), (8, 1.98), (16, 1.98), (3, 0.1)])
def test_a_flat_group_gets_exactly_zero_in_float32(count: int, reward: float) -> None:
    for scale in ("std", "none"):
        got = group_relative_advantage(torch.full((2, count), reward), scale=scale)
        assert (got == 0.0).all()


@given(seed=SEEDS, group=st.integers(3, 8))
def test_a_response_without_reward_counts_for_nobody(seed: int, group: int) -> None:
    reward = torch.tensor(ragged(seed, "reward", -3, 3, [group]), dtype=torch.float64)
    with_gap = torch.cat([reward, torch.full((1, 1), torch.nan, dtype=torch.float64)], dim=1)
    valid = with_gap.isfinite()
    got = group_relative_advantage(with_gap, valid=valid)
    torch.testing.assert_close(got[:, :-1], group_relative_advantage(reward))
    assert got[0, -1] == 0.0


def test_a_group_with_one_or_no_reward_left_has_nothing_to_teach() -> None:
    reward = torch.tensor([[1.0, torch.nan, torch.nan], [torch.nan] * 3])
    assert (group_relative_advantage(reward, valid=reward.isfinite()) == 0.0).all()


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2 responses"):
        group_relative_advantage(torch.zeros(4, 1))


@given(seed=SEEDS, lengths=LENGTHS, gamma=UNIT, lam=UNIT)
def test_gae_is_the_sum_of_the_paper(
    seed: int, lengths: list[int], gamma: float, lam: float
) -> None:
    places = columns(seed, lengths)
    reward, value = ragged(seed, "reward", -1, 1, lengths), ragged(seed, "value", -1, 1, lengths)
    mask = mask_of(places)
    got = gae(padded(reward, places), padded(value, places), mask, gamma=gamma, gae_lambda=lam)
    want = by_hand.gae(reward, value, gamma, lam)
    for row, (got_row, want_row) in enumerate(
        zip(rows_of(got.advantage, places), want, strict=True)
    ):
        assert got_row == pytest.approx(want_row, rel=1e-12, abs=1e-12)
        returns = [a + v for a, v in zip(want_row, value[row], strict=True)]
        assert rows_of(got.return_, places)[row] == pytest.approx(returns, rel=1e-12, abs=1e-12)
    assert (got.advantage[~mask] == 0).all()
    assert (got.return_[~mask] == 0).all()


@given(seed=SEEDS, lengths=LENGTHS, gamma=UNIT)
def test_gae_with_lambda_one_is_the_discounted_return(
    seed: int, lengths: list[int], gamma: float
) -> None:
    places = columns(seed, lengths)
    reward, value = ragged(seed, "reward", -1, 1, lengths), ragged(seed, "value", -1, 1, lengths)
    got = gae(padded(reward, places), padded(value, places), mask_of(places), gamma=gamma)
    for got_row, row in zip(rows_of(got.return_, places), reward, strict=True):
        want = [
            math.fsum(gamma ** (u - t) * row[u] for u in range(t, len(row)))
            for t in range(len(row))
        ]
        assert got_row == pytest.approx(want, rel=1e-10, abs=1e-12)


def test_gae_with_lambda_zero_is_the_one_step_error_and_looks_one_token_ahead() -> None:
    reward = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    value = torch.tensor([[0.1, 0.2, 0.4]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    got = gae(reward, value, mask, gamma=0.5, gae_lambda=0.0).advantage[0].tolist()
    want = [0.5 * 0.2 - 0.1, 0.5 * 0.4 - 0.2, 1.0 - 0.4]
    assert got == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_a_right_value_function_leaves_no_advantage() -> None:
    reward = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)
    value = torch.full((1, 3), 2.0, dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    for lam in (0.0, 0.5, 1.0):
        assert (gae(reward, value, mask, gamma=1.0, gae_lambda=lam).advantage == 0).all()


@given(seed=SEEDS, lengths=LENGTHS)
def test_the_score_stands_on_the_last_trained_token_and_the_penalty_on_each(
    seed: int, lengths: list[int]
) -> None:
    places = columns(seed, lengths)
    kl = ragged(seed, "kl", -1, 1, lengths)
    score = ragged(seed, "score", -1, 1, [len(lengths)])[0]
    got = token_reward(
        torch.tensor(score, dtype=torch.float64),
        mask_of(places),
        kl=padded(kl, places),
        kl_coef=0.1,
    )
    for row, place in enumerate(places):
        want = [-0.1 * k for k in kl[row]]
        want[-1] += score[row]
        assert rows_of(got, places)[row] == pytest.approx(want, rel=1e-12, abs=1e-15)
        assert got[row].sum().item() == pytest.approx(sum(want), abs=1e-12)
        assert len(place) == len(want)


def test_a_row_without_a_trained_token_gets_no_reward() -> None:
    mask = torch.tensor([[False, False], [True, False]])
    assert token_reward(torch.tensor([5.0, 7.0]), mask).tolist() == [[0.0, 0.0], [7.0, 0.0]]


@given(seed=SEEDS, lengths=LENGTHS.filter(lambda n: sum(n) > 1))
def test_whitening_is_the_formula(seed: int, lengths: list[int]) -> None:
    places, x = columns(seed, lengths), ragged(seed, "x", -3, 3, lengths)
    mask = mask_of(places)
    got = whiten(padded(x, places), mask)
    for got_row, want_row in zip(rows_of(got, places), by_hand.whiten(x), strict=True):
        assert got_row == pytest.approx(want_row, rel=1e-9, abs=1e-9)
    assert (got[~mask] == 0).all()


def test_whitening_equal_or_single_entries_gives_zero() -> None:
    mask = torch.tensor([[True, True, False]])
    assert (whiten(torch.tensor([[2.5, 2.5, torch.nan]]), mask) == 0).all()
    assert (
        whiten(torch.tensor([[2.5, 9.0, 9.0]]), torch.tensor([[True, False, False]])) == 0
    ).all()


def test_explained_variance_is_one_for_foresight_zero_for_a_constant_negative_for_worse() -> None:
    return_ = torch.tensor([[1.0, 2.0, 4.0, torch.nan]], dtype=torch.float64)
    mask = return_.isfinite()
    assert explained_variance(return_, return_, mask).item() == 1.0
    assert explained_variance(torch.full_like(return_, 7.0), return_, mask).item() == 0.0
    assert explained_variance(-return_, return_, mask).item() == pytest.approx(-3.0, rel=1e-12)
    assert explained_variance(return_, torch.full_like(return_, 7.0), mask).item() == 0.0
