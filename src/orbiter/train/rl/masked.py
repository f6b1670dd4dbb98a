"""Sums, means and variances over the entries selected by a mask.

Not here: anything about reinforcement learning.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def only(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Set value and gradient to zero where the mask is False, even where the value is NaN.

    Applied to inputs rather than to results: zero times the gradient of a NaN is still NaN.
    """
    return x.masked_fill(~mask, 0.0)


def masked_sum(
    x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, dim: int | None = None
) -> Float[Tensor, "..."]:
    """Sum the entries whose mask is True, over all axes or over `dim`."""
    return only(x, mask).sum(dim=dim)


def masked_mean(
    x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, dim: int | None = None
) -> Float[Tensor, "..."]:
    """Average the entries whose mask is True; 0 if no entry is selected."""
    # The clamp makes an empty selection 0 instead of NaN.
    return masked_sum(x, mask, dim=dim) / mask.sum(dim=dim).clamp(min=1)


def masked_var(
    x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, dim: int | None = None
) -> Float[Tensor, "..."]:
    """Return the sample variance (divided by n - 1) of the entries whose mask is True.

    The variance of fewer than two entries is 0.
    """
    x = only(x, mask)
    mean = masked_mean(x, mask, dim=dim)
    # In two passes: the mean of squares minus the squared mean cancels catastrophically.
    centred = x - (mean if dim is None else mean.unsqueeze(dim))
    # n - 1 is 0 for a single entry, whose centred square is 0 as well.
    return masked_sum(centred.square(), mask, dim=dim) / (mask.sum(dim=dim) - 1).clamp(min=1)


def all_equal(x: Float[Tensor, "*axes N"], mask: Bool[Tensor, "*axes N"]) -> Bool[Tensor, "*axes"]:
    """Return where all entries of the last axis whose mask is True are equal."""
    # Filled with the opposite extremes; a row with no entry gives -inf <= inf and counts as
    # equal.
    highest = x.masked_fill(~mask, -torch.inf).amax(dim=-1)
    lowest = x.masked_fill(~mask, torch.inf).amin(dim=-1)
    return highest <= lowest
