"""Attention of one decoding step to a beginning that all rows share.

The episodes of a task share its prompt, and those of all tasks share the instructions and the tool
descriptions, which are most of an agent's prompt. Their keys are read once a step for all rows
instead of once for each: one product with the queries of all rows takes the place of one a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

WORTH_SHARING = 512
"""Keys that must be saved, over all rows, for the second pair of products to pay."""
STALE_SHARE = 0.5
"""The kept beginning is replaced by a longer one when it is at most this share of it."""


class SharedBeginning(NamedTuple):
    """The tokens with which all rows begin, with their keys and values in each layer."""

    token_ids: list[int]
    k: list[Float[Tensor, "kv_heads S D"]]
    v: list[Float[Tensor, "kv_heads S D"]]

    def fits(self, rows: Sequence[Sequence[int]], length: int) -> bool:
        """Return whether it can serve rows that have a beginning of this length in common."""
        mine = len(self.token_ids)
        return length * STALE_SHARE < mine <= length and rows[0][:mine] == self.token_ids

    def attend(
        self,
        number: int,
        q: Float[Tensor, "B heads D"],
        k: Float[Tensor, "B kv_heads T D"],
        v: Float[Tensor, "B kv_heads T D"],
        bias: Float[Tensor, "B T"],
    ) -> Float[Tensor, "B heads*D"]:
        """Attend to the beginning, and to each row's own keys after it, in one softmax.

        Args:
            number: The layer.
            q: The queries of each row's newest token.
            k: Each row's keys after the beginning.
            v: The values of the same.
            bias: 0 for each cell that holds a token of the row, else minus infinity.
        """
        rows, heads, width = q.shape
        kv_heads, own = k.shape[1:3]
        share, length = heads // kv_heads, len(self.token_ids)
        # The rows of a key head are stacked, since they read the same keys of the beginning.
        by_head = (q * (1 / math.sqrt(width))).view(rows, kv_heads, share, width).transpose(0, 1)
        stacked = by_head.reshape(kv_heads, rows * share, width)
        of_beginning = torch.bmm(stacked, self.k[number].transpose(1, 2))
        by_row = stacked.view(kv_heads * rows, share, width)
        k, v = (x.transpose(0, 1).reshape(kv_heads * rows, own, width) for x in (k, v))
        of_own = torch.bmm(by_row, k.transpose(1, 2)).view(kv_heads, rows, share, own)
        of_own = of_own.add_(bias[:, None]).view(kv_heads, rows * share, own)
        weight = torch.cat([of_beginning, of_own], dim=-1).softmax(dim=-1)
        to_beginning, to_own = weight.split([length, own], dim=-1)
        mixed = torch.bmm(to_beginning, self.v[number]).view(kv_heads * rows, share, width)
        mixed += torch.bmm(to_own.reshape(kv_heads * rows, share, own), v)
        return mixed.view(kv_heads, rows, share * width).transpose(0, 1).reshape(rows, -1)


def common_length(rows: Sequence[list[int]]) -> int:
    """Return the number of tokens with which all rows begin."""
    # What the first and the last in order have in common, all between them have as well.
    first, last = min(rows), max(rows)
    for at, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return at
    return min(len(first), len(last))
