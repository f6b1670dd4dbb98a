"""Random batches, as ragged rows for the reference and as padded tensors for the code."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from tests.rl.by_hand import Rows

LENGTH = 6
"""Columns of a padded batch."""


def ragged(seed: int, name: str, low: float, high: float, lengths: list[int]) -> Rows:
    """Draw rows of the given lengths; the same seed and name draw the same numbers."""
    draw = random.Random(f"{seed}/{name}")
    return [[draw.uniform(low, high) for _ in range(length)] for length in lengths]


def columns(seed: int, lengths: list[int]) -> list[list[int]]:
    """Choose where in its padded row each trained token stands: holes are tools' answers."""
    draw = random.Random(f"{seed}/columns")
    return [sorted(draw.sample(range(LENGTH), length)) for length in lengths]


def padded(rows: Rows, places: list[list[int]]) -> Tensor:
    """Put ragged rows at their places in a float64 tensor; everything else is NaN."""
    tensor = torch.full((len(rows), LENGTH), torch.nan, dtype=torch.float64)
    for b, (row, place) in enumerate(zip(rows, places, strict=True)):
        for number, t in zip(row, place, strict=True):
            tensor[b, t] = number
    return tensor


def mask_of(places: list[list[int]]) -> Tensor:
    """Return the mask that is True at the places."""
    mask = torch.zeros(len(places), LENGTH, dtype=torch.bool)
    for b, place in enumerate(places):
        mask[b, place] = True
    return mask


def rows_of(tensor: Tensor, places: list[list[int]]) -> Rows:
    """Read the trained entries of a padded tensor back as ragged rows."""
    return [[tensor[b, t].item() for t in place] for b, place in enumerate(places)]


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    """Return the derivative of the sum of `loss` with respect to `leaf`."""
    (found,) = torch.autograd.grad(loss.sum(), leaf)
    return found
