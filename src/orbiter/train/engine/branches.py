"""Track which samples are still identical, so that one row of the model serves all of them.

Samples of a prompt that have drawn the same tokens so far need the same forward pass: they share a
row until they draw different tokens. A policy that has learned something often draws the same
tokens. Drawing is in `sample.py`; the rows themselves belong to the decoders.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DROP_SHARE = 8
"""Rows without a sample are dropped once they are at least 1 / `DROP_SHARE` of all rows.

Dropping copies the cache, so it is not worth doing for fewer.
"""


class Branches(NamedTuple):
    """The row that each of S samples shares; samples of the same prompt are adjacent."""

    branch: Int[Tensor, "S"]
    """Row of each sample."""
    place: Int[Tensor, "S"]
    """Index of each sample among the samples of its row."""
    width: int
    """Largest number of samples in a row; once it is 1, no row is shared any more."""

    def lay_out(self, uniform: Float[Tensor, "S"], *, rows: int) -> Float[Tensor, "R n"]:
        """Arrange one number per sample in a table of rows and indices within the row."""
        table = uniform.new_zeros(rows, self.width)
        table[self.branch, self.place] = uniform
        return table

    def only(self, samples: Bool[Tensor, "S"]) -> Branches:
        """Keep only these samples; rows without samples are dropped later."""
        return Branches(self.branch[samples], self.place[samples], self.width)

    def grow(self, token_ids: Int[Tensor, "S"], *, rows: int) -> Growth:
        """Add one drawn token to each sample, and fork a row whose samples now differ."""
        fork = self._fork(token_ids)
        # Only a row that forks must be copied; otherwise the cache can stay as it is.
        twice = bool((fork.parent[1:] == fork.parent[:-1]).any())
        idle = rows - len(fork.parent)
        # Rows that no sample uses are computed and ignored until they are worth a copy of the
        # cache.
        if not twice and (idle == 0 or idle * DROP_SHARE < rows):
            read = token_ids.new_zeros(rows).index_copy_(0, fork.parent, fork.token)
            return Growth(self, None, read)
        apart = len(fork.parent) == len(token_ids)
        place = torch.zeros_like(self.place) if apart else self.place
        tree = Branches(fork.branch, place, 1 if apart else self.width)
        return Growth(tree, fork.parent, fork.token)

    def _fork(self, token_ids: Int[Tensor, "S"]) -> _Fork:
        """Return the distinct pairs of a row and a token drawn in it, in the order of the rows."""
        if self.width == 1:
            return _Fork(self.branch, token_ids, torch.arange(len(token_ids)).to(token_ids))
        # A pair of row and token as one number, so that `unique` compares both at once.
        size = int(token_ids.max()) + 1
        pair, branch = (self.branch * size + token_ids).unique(return_inverse=True)
        return _Fork(pair // size, pair % size, branch)


class _Fork(NamedTuple):
    """The rows after a draw, before it is decided whether the current rows can be kept."""

    parent: Int[Tensor, "R"]
    token: Int[Tensor, "R"]
    branch: Int[Tensor, "S"]


class Growth(NamedTuple):
    """The samples and their rows after one more token."""

    tree: Branches
    kept: Int[Tensor, "R"] | None
    """Rows to continue with, some more than once; None means all of them, unchanged."""
    read: Int[Tensor, "R"]
    """The token that each row reads next."""
