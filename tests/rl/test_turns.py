"""Credit by turn: the formulas in plain floats, and their exact expectation on a small process."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orbiter.train.errors import DataError
from orbiter.train.rl import (
    gae,
    group_relative_advantage,
    returns_to_go,
    state_advantage,
    turn_advantage,
    turn_gae,
)
from tests.rl import by_hand
from tests.rl.batches import columns, mask_of, padded, ragged, rows_of
from tests.rl.decisions import Gradient, Groups, Process, State, returns, uneven

SEEDS = st.integers(0, 2**32 - 1)
TURNS = st.lists(st.integers(0, 4), min_size=2, max_size=5)
"""Turns of each episode of a group; one without turns does not count."""
UNIT = st.floats(0.0, 1.0)
SCALES = st.sampled_from(["std", "none"])


def group_of(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """One group, padded with NaN, and the mask of its turns."""
    longest = max(1, *map(len, rows))
    padding = [[*row, *[math.nan] * (longest - len(row))] for row in rows]
    values = torch.tensor(padding, dtype=torch.float64)
    return values[None], values.isfinite()[None]


@given(seed=SEEDS, turns=TURNS, gamma=UNIT)
def test_the_return_of_a_turn_is_the_discounted_sum_from_there_on(
    seed: int, turns: list[int], gamma: float
) -> None:
    rows = ragged(seed, "reward", -1, 1, turns)
    reward, valid = group_of(rows)
    got = returns_to_go(reward, valid, gamma=gamma)[0]
    for row, got_row in zip(rows, got.tolist(), strict=True):
        want = by_hand.returns(row, gamma)
        assert got_row[: len(row)] == pytest.approx(want, rel=1e-10, abs=1e-12)
        assert got_row[len(row) :] == [0.0] * (len(got_row) - len(row))


@given(seed=SEEDS, turns=TURNS, scale=SCALES, compare=st.sampled_from(["turn", "group"]))
def test_the_advantage_of_a_turn_is_the_formula(
    seed: int, turns: list[int], scale: str, compare: str
) -> None:
    rows = ragged(seed, "return", -1, 1, turns)
    return_, valid = group_of(rows)
    got = turn_advantage(return_, valid, compare=compare, scale=scale)[0]  # type: ignore[arg-type]
    want = by_hand.turn_advantage(rows, compare == "turn", scale == "std")
    for got_row, want_row in zip(got.tolist(), want, strict=True):
        assert got_row[: len(want_row)] == pytest.approx(want_row, rel=1e-8, abs=1e-9)
        assert got_row[len(want_row) :] == [0.0] * (len(got_row) - len(want_row))


@given(seed=SEEDS, size=st.integers(2, 6), scale=SCALES)
def test_with_one_turn_an_episode_it_is_grpo(seed: int, size: int, scale: str) -> None:
    reward = torch.tensor(ragged(seed, "r", -1, 1, [size, size]), dtype=torch.float64)
    valid = torch.ones(2, size, 1, dtype=torch.bool)
    want = group_relative_advantage(reward, scale=scale)  # type: ignore[arg-type]
    for compare in ("turn", "group"):
        got = turn_advantage(reward[..., None], valid, compare=compare, scale=scale)  # type: ignore[arg-type]
        torch.testing.assert_close(got[..., 0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compare", ["turn", "group"])
def test_a_flat_group_and_a_single_episode_teach_nothing(compare: str) -> None:
    flat = torch.full((1, 15, 2), 1.96)
    everything = torch.ones(1, 15, 2, dtype=torch.bool)
    alone = torch.zeros(1, 15, 2, dtype=torch.bool)
    alone[0, 3] = True
    returns_ = torch.arange(30.0).view(1, 15, 2)
    assert (turn_advantage(flat, everything, compare=compare) == 0).all()  # type: ignore[arg-type]
    assert (turn_advantage(returns_, alone, compare=compare) == 0).all()  # type: ignore[arg-type]
    assert (state_advantage(flat, torch.zeros(1, 15, 2).long(), everything) == 0).all()
    with pytest.raises(DataError, match="at least 2 episodes"):
        turn_advantage(flat[:, :1], everything[:, :1], compare=compare)  # type: ignore[arg-type]


@given(seed=SEEDS, turns=TURNS, scale=SCALES)
def test_the_advantage_within_a_state_is_the_formula(
    seed: int, turns: list[int], scale: str
) -> None:
    rows = ragged(seed, "return", -1, 1, turns)
    draw = random.Random(seed)
    states = [[draw.randrange(3) for _ in row] for row in rows]
    return_, valid = group_of(rows)
    state = torch.full(valid.shape, 0)  # where there is no turn, the number of a real state
    for g, row in enumerate(states):
        state[0, g, : len(row)] = torch.tensor(row, dtype=torch.long)
    got = state_advantage(  # two groups with the same states, which do not mix
        torch.cat([return_, return_ + 1]),
        torch.cat([state, state]),
        torch.cat([valid, valid]),
        scale=scale,  # type: ignore[arg-type]
    )
    want = by_hand.state_advantage(rows, states, scale == "std")
    for group in got.tolist():
        for got_row, want_row in zip(group, want, strict=True):
            assert got_row[: len(want_row)] == pytest.approx(want_row, rel=1e-7, abs=1e-8)


@given(
    seed=SEEDS,
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    gamma=UNIT,
    lam=UNIT,
)
def test_gae_over_turns_is_the_sum_of_the_paper_over_turns(
    seed: int, lengths: list[int], gamma: float, lam: float
) -> None:
    places, draw = columns(seed, lengths), random.Random(f"{seed}/turns")
    reward, value = ragged(seed, "reward", -1, 1, lengths), ragged(seed, "value", -1, 1, lengths)
    turns: list[list[int]] = []
    for length in lengths:
        steps = [0, *(draw.randrange(2) for _ in range(length - 1))]
        turns.append([sum(steps[: t + 1]) for t in range(length)])
    turn = padded([[float(k) for k in row] for row in turns], places).nan_to_num(nan=9).long()
    got = turn_gae(
        padded(reward, places),
        padded(value, places),
        turn,
        mask_of(places),
        gamma=gamma,
        gae_lambda=lam,
    )
    for b, row in enumerate(turns):
        first = [row.index(k) for k in range(row[-1] + 1)]
        rewards = [math.fsum(r for r, k in zip(reward[b], row, strict=True) if k == n) for n in row]
        rewards = [rewards[t] for t in first]
        values = [value[b][t] for t in first]
        (want,) = by_hand.gae([rewards], [values], gamma, lam)
        assert rows_of(got.advantage, places)[b] == pytest.approx(
            [want[k] for k in row], rel=1e-10, abs=1e-12
        )
        assert rows_of(got.return_, places)[b] == pytest.approx(
            [want[k] + values[k] for k in row], rel=1e-10, abs=1e-12
        )
    assert (got.advantage[~mask_of(places)] == 0).all()


def test_with_one_token_a_turn_gae_over_turns_is_gae() -> None:
    reward = torch.tensor([[0.5, torch.nan, 1.0, 2.0]], dtype=torch.float64)
    value = torch.tensor([[0.1, torch.nan, 0.2, 0.7]], dtype=torch.float64)
    mask = reward.isfinite()
    turn = torch.tensor([[0, 5, 1, 2]])
    got = turn_gae(reward, value, turn, mask, gamma=0.9, gae_lambda=0.8)
    want = gae(reward, value, mask, gamma=0.9, gae_lambda=0.8)
    torch.testing.assert_close(got.advantage, want.advantage)
    torch.testing.assert_close(got.return_, want.return_)


# What the estimators are worth on a process whose exact policy gradient is known.

SIZE = 3


def close(got: Gradient, want: Gradient, factor: float = 1.0) -> bool:
    return all(
        math.isclose(got.get(key, 0.0), factor * value, rel_tol=1e-9, abs_tol=1e-12)
        for key, value in want.items()
    )


@pytest.mark.parametrize("gamma", [1.0, 0.6])
@pytest.mark.parametrize("compare", ["turn", "group"])
def test_credit_by_turn_is_the_exact_policy_gradient_on_average(compare: str, gamma: float) -> None:
    process = Process(uneven)
    exact = process.gradient(lambda episode: returns(episode, gamma))
    assert max(map(abs, exact.values())) > 0.01

    def estimate(groups: Groups) -> Tensor:
        return_ = returns_to_go(groups.reward, groups.valid, gamma=gamma)
        return turn_advantage(return_, groups.valid, compare=compare, scale="none")  # type: ignore[arg-type]

    assert close(process.expected(estimate, SIZE), exact, (SIZE - 1) / SIZE)


def test_credit_by_episode_is_the_exact_policy_gradient_on_average() -> None:
    process = Process(uneven)
    exact = process.gradient(lambda episode: returns(episode, 1.0))

    def estimate(groups: Groups) -> Tensor:
        total = groups.reward.nan_to_num().sum(dim=-1)
        return group_relative_advantage(total, scale="none")[..., None] * groups.valid

    assert close(process.expected(estimate, SIZE), exact, (SIZE - 1) / SIZE)


def test_a_mean_by_turn_index_with_the_episode_itself_is_biased_where_the_policy_stops() -> None:
    process = Process(uneven)
    exact = process.gradient(lambda episode: returns(episode, 1.0))

    def as_published(groups: Groups) -> Tensor:
        return_ = returns_to_go(groups.reward, groups.valid)
        count = groups.valid.sum(dim=1, keepdim=True).clamp(min=1)
        return (return_ - return_.sum(dim=1, keepdim=True) / count) * groups.valid

    got = process.expected(as_published, SIZE)
    factors = [got[key] / value for key, value in exact.items() if abs(value) > 1e-3]
    assert max(factors) / min(factors) > 1.5  # a late turn learns less than half as fast


def test_within_a_state_the_average_is_the_exact_gradient_of_that_state() -> None:
    process = Process(uneven)
    exact = process.gradient(lambda episode: returns(episode, 1.0))

    def estimate(groups: Groups) -> Tensor:
        return_ = returns_to_go(groups.reward, groups.valid)
        return state_advantage(return_, groups.state, groups.valid, scale="none")

    got = process.expected(estimate, SIZE)
    for state in {state for state, _ in exact}:
        visited = math.fsum(
            p for episode, p in process.episodes() if any(step.state == state for step in episode)
        )
        others = SIZE - 1  # how many of them are in the state too is binomial
        factor = math.fsum(
            math.comb(others, m) * visited**m * (1 - visited) ** (others - m) * m / (m + 1)
            for m in range(others + 1)
        )
        here = {key: value for key, value in exact.items() if key[0] == state}
        assert close(got, here, factor), state


@pytest.mark.parametrize("gae_lambda", [1.0, 0.5])
def test_gae_over_turns_is_the_exact_policy_gradient_on_average(gae_lambda: float) -> None:
    process, gamma = Process(uneven), 0.7
    exact = process.gradient(lambda episode: returns(episode, gamma))
    weight: dict[State, float] = {}
    total: dict[State, float] = {}
    for episode, p in process.episodes():
        for step, g in zip(episode, returns(episode, gamma), strict=True):
            weight[step.state] = weight.get(step.state, 0.0) + p
            total[step.state] = total.get(step.state, 0.0) + p * g

    def value(state: State) -> float:
        # With lambda 1 any function of the state will do; else it has to be the true one.
        return len(state) / 3 if gae_lambda == 1 else total[state] / weight[state]

    def credit(episode: tuple[object, ...]) -> list[float]:
        steps = [step for step in episode for _ in range(2)]  # two tokens a turn
        rewards = [[step.reward / 2 for step in steps]]  # type: ignore[attr-defined]
        values = [[value(step.state) if t % 2 == 0 else 99.0 for t, step in enumerate(steps)]]  # type: ignore[attr-defined]
        got = turn_gae(
            torch.tensor(rewards, dtype=torch.float64),
            torch.tensor(values, dtype=torch.float64),
            torch.arange(len(steps))[None] // 2,
            torch.ones(1, len(steps), dtype=torch.bool),
            gamma=gamma,
            gae_lambda=gae_lambda,
        ).advantage[0]
        assert torch.equal(got[::2], got[1::2])
        return list(got[::2].tolist())

    assert close(process.gradient(credit), exact)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("credit", ["episode", "turn", "group"])
def test_a_table_of_logits_learns_the_process_from_sampled_groups(credit: str, seed: int) -> None:
    """The loop's mathematics is not what kept tiny models flat: a table learns from any start."""
    draw = random.Random(f"{seed}/{credit}")
    table: dict[tuple[State, str], float] = {}

    def logits(state: State, action: str) -> float:
        return table.get((state, action), 0.0)

    def reward() -> float:
        return math.fsum(p * episode[-1].reward for episode, p in Process(logits).episodes())

    assert reward() < 0.6
    for _ in range(120):
        process = Process(logits)
        episodes = process.episodes()
        weights = [p for _, p in episodes]
        groups = [[e for e, _ in draw.choices(episodes, weights, k=8)] for _ in range(4)]
        batch = Groups.of(groups)
        return_ = returns_to_go(batch.reward, batch.valid)
        if credit == "episode":
            advantage = group_relative_advantage(return_[..., 0])[..., None] * batch.valid
        else:
            advantage = turn_advantage(return_, batch.valid, compare=credit)  # type: ignore[arg-type]
        step: dict[tuple[State, str], float] = {}
        for group, of_group in zip(groups, advantage.tolist(), strict=True):
            for episode, of_episode in zip(group, of_group, strict=True):
                for turn, credited in zip(episode, of_episode, strict=False):
                    for key, value in process.score(turn).items():
                        step[key] = step.get(key, 0.0) + credited * value / 32
        for key, value in step.items():
            table[key] = table.get(key, 0.0) + 1.5 * value
    assert reward() > 0.9
