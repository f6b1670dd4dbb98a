"""The shapes in the signatures are checked while the tests run (tests/conftest.py hooks them)."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from orbiter.train.rl import clipped_surrogate, entropy, gae, group_relative_advantage


def test_a_mask_of_another_shape_is_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(TypeCheckError):
        gae(x, x, torch.ones(2, 4, dtype=torch.bool))


def test_a_mask_of_numbers_is_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(TypeCheckError):
        clipped_surrogate(x, x, x, torch.ones(2, 3), clip_range=0.2)


def test_an_advantage_a_row_is_not_an_advantage_a_token() -> None:
    x = torch.zeros(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(TypeCheckError):
        clipped_surrogate(x, x, torch.zeros(2), mask, clip_range=0.2)


def test_rewards_must_be_numbers_in_groups() -> None:
    with pytest.raises(TypeCheckError):
        group_relative_advantage(torch.zeros(8))
    with pytest.raises(TypeCheckError):
        group_relative_advantage(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(TypeCheckError):
        entropy(torch.zeros(2, 4, dtype=torch.long))
