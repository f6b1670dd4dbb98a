"""Rollouts become rectangles and lose nothing on the way."""

from __future__ import annotations

import pytest
import torch

from orbiter.train.engine.batch import Batch, collate, minibatches
from orbiter.train.engine.rollout import Rollout, given
from orbiter.train.errors import DataError

ROLLOUTS = [given([1, 2], [3, 4, 5]), given([1, 2], [6]), given([7], [8, 9])]


def test_rows_are_padded_behind_their_length() -> None:
    batch = collate(ROLLOUTS)
    assert batch.token_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 0, 0], [7, 8, 9, 0, 0]]
    assert batch.length.tolist() == [5, 3, 3]
    assert batch.prompt_length.tolist() == [2, 2, 1]
    assert batch.mask.sum(dim=-1).tolist() == [3, 1, 2]


def test_rows_with_equal_prompts_share_a_group() -> None:
    assert collate(ROLLOUTS).group.tolist() == [0, 0, 1]


def test_an_advantage_a_row_is_spread_over_its_mask() -> None:
    batch = collate(ROLLOUTS, advantage=torch.tensor([1.0, -2.0, 0.5]))
    assert batch.advantage is not None
    assert batch.advantage[1].tolist() == [0.0, 0.0, -2.0, 0.0, 0.0]
    assert batch.advantage[2].tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]


def test_selected_rows_are_cut_to_the_longest_of_them() -> None:
    batch = collate(ROLLOUTS, advantage=torch.tensor([1.0, 2.0, 3.0])).select(torch.tensor([2, 1]))
    assert batch.token_ids.tolist() == [[7, 8, 9], [1, 2, 6]]
    assert batch.advantage is not None
    assert batch.advantage.shape == (2, 3)
    assert batch.old_logprob is None


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12, 50])
def test_minibatches_hold_every_row_once(size: int) -> None:
    batch = grouped(groups=3, rows=4)
    parts = minibatches(batch, size, seed=0)
    seen = [row for part in parts for row in part.token_ids[:, 1].tolist()]
    assert sorted(seen) == list(range(12))
    assert max(len(part.length) for part in parts) <= size


def test_groups_stay_together_where_they_fit_and_the_seed_orders_them() -> None:
    batch = grouped(groups=6, rows=4)
    parts = minibatches(batch, 8, seed=0)
    assert all(len(part.group.unique()) == 2 for part in parts)
    orders = [[p.token_ids[0, 1].item() for p in minibatches(batch, 8, seed=s)] for s in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_nothing_to_collate_and_a_trained_first_token_are_refused() -> None:
    with pytest.raises(DataError, match="no rollouts"):
        collate([])
    with pytest.raises(DataError, match="first token"):
        collate([Rollout([1, 2], [True, True], [0.0, 0.0], prompt_length=1)])


def grouped(groups: int, rows: int) -> Batch:
    return collate([given([g], [g * rows + row]) for g in range(groups) for row in range(rows)])
