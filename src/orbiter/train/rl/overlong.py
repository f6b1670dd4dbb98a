"""A soft penalty for long answers."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def overlong_penalty(
    length: Int[Tensor, "N"], *, max_length: int, buffer: int, penalty: float = 1.0
) -> Float[Tensor, "N"]:
    """Return what is added to the rewards of answers: 0, or less for the longest ones.

        0                                                  length <= max_length - buffer
        penalty (max_length - buffer - length) / buffer    above that
        -penalty                                           length >= max_length

    Yu et al. 2025 (DAPO), equation 13, https://arxiv.org/abs/2503.14476.

    Args:
        length: Sampled tokens of each answer.
        max_length: Largest answer in tokens.
        buffer: The last tokens of it, over which the penalty rises.
        penalty: The largest penalty.
    """
    excess = (length - (max_length - buffer)).clamp(min=0, max=buffer)
    return excess.double() * (-penalty / buffer)
