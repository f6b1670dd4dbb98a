"""Softmax attention with a mask: which kernel computes it, and how little of it is computed.

On a CPU, short rows take plain batched products. Long ones are attended in blocks of queries, each
of which reads only the keys up to the last one that it sees: about half of them under a causal
mask. A block takes torch's fused kernel in float32, and plain products in 16 bits, where they are
faster (docs/engine.md). On accelerators the fused kernel attends all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.arithmetic import fused_attention_works

LONG_FROM = 1 << 18
"""Rows with at least this many queries x keys are long: their scores are not kept for backward."""
BLOCK = 256
"""Queries in a block of a long row: the scores of a block stay in the processor's cache."""
WORTH_IT = 0.75
"""Largest share of all keys that blocks may read to be faster than the fused kernel."""


def attend(
    q: Float[Tensor, "B heads Q D"],
    k: Float[Tensor, "B kv_heads K D"],
    v: Float[Tensor, "B kv_heads K D"],
    bias: Float[Tensor, "B Q K"],
    ends: Sequence[int] = (),
) -> Float[Tensor, "B heads Q D"]:
    """Return softmax(q k^T / sqrt(D) + bias) v; query heads share the keys of their group.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        bias: 0 for a key that the query sees, else minus infinity; no query sees nothing.
        ends: What `key_ends` returns for `bias`, for a caller that attends often; without it,
            every block reads all keys.
    """
    queries, keys = bias.shape[1:]
    on_cpu = q.device.type == "cpu"
    if on_cpu and queries * keys < LONG_FROM:
        return _plain(q, k, v, bias)
    fused = fused_attention_works(q.dtype, q.device.type)
    if not on_cpu:
        return _fused(q, k, v, bias) if fused else _plain(q, k, v, bias)
    ends = ends or [keys] * math.ceil(queries / BLOCK)
    narrow = q.element_size() < 4 or not fused
    if not narrow and sum(ends) > WORTH_IT * keys * len(ends):
        return _fused(q, k, v, bias)
    apply: Callable[..., Tensor] = _InBlocks.apply
    return apply(q, k, v, bias, _Blocks(ends, rows=1 if narrow else len(q), fused=not narrow))


def key_ends(bias: Float[Tensor, "B Q K"]) -> list[int]:
    """Return, for each block of queries, the number of keys up to the last one that it sees.

    Empty where attention does not work in blocks.
    """
    queries, keys = bias.shape[1:]
    if bias.device.type != "cpu" or queries * keys < LONG_FROM:
        return []
    seen = (bias == 0).any(dim=0)
    return [int(block.any(dim=0).nonzero()[-1]) + 1 for block in seen.split(BLOCK)]


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend with torch's kernel, which stores no scores."""
    shared = q.shape[1] > k.shape[1]
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias[:, None], enable_gqa=shared
    )


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend with batched products."""
    batch, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1:3]
    share = heads // kv_heads
    if q.element_size() < 4:
        # In 16 bits torch's batched product copies matrices that are not contiguous, and copies the
        # transposed keys element by element, which takes longer than the product itself.
        k, v = k.contiguous(), v.contiguous()
    # Queries that share keys are stacked as more rows of one product, so that no key is copied.
    # Scaling the queries takes fewer products than scaling the scores.
    scaled = (q * (1 / math.sqrt(width))).reshape(batch * kv_heads, share * queries, width)
    by_key = k.reshape(batch * kv_heads, keys, width).transpose(1, 2)
    scores = torch.bmm(scaled, by_key).view(batch, kv_heads, share, queries, keys)
    bias = bias[:, None, None]
    # Added by broadcasting: baddbmm would copy the bias for every head that shares it. Not in place
    # under autograd, whose backward would copy the gradient for it.
    scores = scores + bias if scores.requires_grad else scores.add_(bias)
    weight = scores.softmax(dim=-1).view(batch * kv_heads, share * queries, keys)
    mixed = torch.bmm(weight, v.reshape(batch * kv_heads, keys, width))
    return mixed.view(batch, heads, queries, width)


class _Part(NamedTuple):
    """Queries that are attended together, and the number of keys that they read."""

    rows: slice
    queries: slice
    end: int

    def of(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = slice(self.end)
        return q[self.rows, :, self.queries], k[self.rows, :, keys], v[self.rows, :, keys]


class _Blocks(NamedTuple):
    """How a batch is cut into parts, and which kernel attends each."""

    ends: Sequence[int]
    rows: int
    """Rows in a part."""
    fused: bool

    def parts(self, batch: int) -> Iterator[_Part]:
        for row in range(0, batch, self.rows):
            for number, end in enumerate(self.ends):
                queries = slice(number * BLOCK, (number + 1) * BLOCK)
                yield _Part(slice(row, row + self.rows), queries, end)

    def attend(self, part: _Part, parts: Sequence[Tensor], bias: Tensor) -> Tensor:
        q, k, v = parts
        return (_fused if self.fused else _plain)(
            q, k, v, bias[part.rows, part.queries, : part.end]
        )


class _InBlocks(torch.autograd.Function):
    """Attention block by block; backward computes a block's scores again.

    Keeping the scores would take heads x Q x K numbers a row and layer, which is more than all else
    in a layer if a prompt has thousands of tokens.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any,  # noqa: ANN401 - torch's
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        blocks: _Blocks,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.blocks = blocks
        mixed = torch.empty_like(q)
        for part in blocks.parts(len(q)):
            mixed[part.rows, :, part.queries] = blocks.attend(part, part.of(q, k, v), bias)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # noqa: ANN401
        q, k, v, bias = ctx.saved_tensors
        d_q = torch.empty_like(q)
        # Several blocks add to a key's gradient: in 16 bits each addition would lose digits.
        d_k, d_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (k, v))
        for part in ctx.blocks.parts(len(q)):
            inputs = [x.detach().requires_grad_() for x in part.of(q, k, v)]
            with torch.enable_grad():
                mixed = ctx.blocks.attend(part, inputs, bias)
            of_mixed = grad[part.rows, :, part.queries]
            of_q, of_k, of_v = torch.autograd.grad(mixed, inputs, of_mixed)
            d_q[part.rows, :, part.queries] = of_q
            d_k[part.rows, :, : part.end] += of_k
            d_v[part.rows, :, : part.end] += of_v
        return d_q, d_k.to(k.dtype), d_v.to(v.dtype), None, None
