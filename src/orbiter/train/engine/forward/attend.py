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
WORTH_READING = 0.75
"""Largest share of all keys that blocks may read to be faster than the fused kernel."""


class Beginning(NamedTuple):
    """Keys and values that come before those of several rows."""

    k: Float[Tensor, "P kv_heads S D"]
    v: Float[Tensor, "P kv_heads S D"]
    of_row: Sequence[int]
    """Which of the P beginnings each row has."""

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put each row's beginning before the row's own keys and values."""
        if len(self.k) == 1:
            of_k, of_v = (x.expand(len(k), -1, -1, -1) for x in self[:2])
        else:
            # Not by indexing, whose backward pass is slower.
            of_row = torch.tensor(self.of_row, device=k.device)
            of_k, of_v = (x.index_select(0, of_row) for x in self[:2])
        return torch.cat([of_k, k], dim=2), torch.cat([of_v, v], dim=2)


def attend(
    q: Float[Tensor, "B heads Q D"],
    k: Float[Tensor, "B kv_heads K D"],
    v: Float[Tensor, "B kv_heads K D"],
    bias: Float[Tensor, "B Q K"],
    ends: Sequence[int] = (),
    *,
    beginning: Beginning | None = None,
) -> Float[Tensor, "B heads Q D"]:
    """Return softmax(q k^T / sqrt(D) + bias) v; query heads share the keys of their group.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        bias: 0 for a key that the query sees, else minus infinity; no query sees nothing.
        ends: What `key_ends` returns for `bias`, for a caller that attends often; without it,
            every block reads all keys.
        beginning: Keys and values that come before `k` and `v`, and that rows may share; `bias` and
            `ends` count them as well. Blocks copy them for one part at a time.
    """
    queries, keys = bias.shape[1:]
    on_cpu = q.device.type == "cpu"
    fused = fused_attention_works(q.dtype, q.device.type)
    narrow = q.element_size() < 4 or not fused
    ends = ends or [keys] * math.ceil(queries / BLOCK)
    short = queries * keys < LONG_FROM
    if on_cpu and not short and (narrow or sum(ends) <= WORTH_READING * keys * len(ends)):
        apply: Callable[..., Tensor] = _InBlocks.apply
        k_begun, v_begun = beginning[:2] if beginning else (None, None)
        of_row = beginning.of_row if beginning else ()
        blocks = _Blocks(ends, rows=1 if narrow else len(q), fused=not narrow, of_row=of_row)
        return apply(q, k, v, bias, blocks, k_begun, v_begun)
    if beginning:
        k, v = beginning.before(k, v)
    plain = not fused or (short and on_cpu)
    return (_plain if plain else _fused)(q, k, v, bias)


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
    begun: slice
    """The beginnings that the rows have."""

    def of(self, q: Tensor, k: Tensor, v: Tensor, *begun: Tensor) -> list[Tensor]:
        """Return the part of queries, the rows' keys and values, and those of their beginnings."""
        # Every row reads its beginning whole.
        keys = slice(self.end - _length(begun))
        own = q[self.rows, :, self.queries], k[self.rows, :, keys], v[self.rows, :, keys]
        return [*own, *(x[self.begun] for x in begun)]


class _Blocks(NamedTuple):
    """How a batch is cut into parts, and which kernel attends each."""

    ends: Sequence[int]
    rows: int
    """Rows in a part."""
    fused: bool
    of_row: Sequence[int]
    """Which beginning each row has; empty without beginnings."""

    def parts(self, batch: int, begun: int) -> Iterator[_Part]:
        """Cut a batch whose rows have beginnings of this many keys."""
        for row in range(0, batch, self.rows):
            one = slice(self.of_row[row], self.of_row[row] + 1) if self.of_row else slice(0)
            of_part = one if self.rows == 1 else slice(None)
            for number, end in enumerate(self.ends):
                queries = slice(number * BLOCK, (number + 1) * BLOCK)
                yield _Part(slice(row, row + self.rows), queries, max(end, begun), of_part)

    def attend(self, part: _Part, inputs: Sequence[Tensor], bias: Tensor) -> Tensor:
        """Attend with what `_Part.of` returned."""
        q, k, v, *begun = inputs
        if begun:
            of_k, of_v = begun
            k, v = Beginning(of_k, of_v, self.of_row[part.rows]).before(k, v)
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
        *begun: Tensor | None,
    ) -> Tensor:
        beginnings = [x for x in begun if x is not None]
        ctx.save_for_backward(q, k, v, bias, *beginnings)
        ctx.blocks = blocks
        mixed = torch.empty_like(q)
        for part in blocks.parts(len(q), _length(beginnings)):
            inputs = part.of(q, k, v, *beginnings)
            mixed[part.rows, :, part.queries] = blocks.attend(part, inputs, bias)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, bias, *beginnings = ctx.saved_tensors
        d_q = torch.empty_like(q)
        # Several blocks add to a key's gradient: in 16 bits each addition would lose digits.
        sums = [torch.zeros(x.shape, dtype=torch.float32) for x in (k, v, *beginnings)]
        for part in ctx.blocks.parts(len(q), _length(beginnings)):
            inputs = [x.detach().requires_grad_() for x in part.of(q, k, v, *beginnings)]
            with torch.enable_grad():
                mixed = ctx.blocks.attend(part, inputs, bias)
            of_mixed = grad[part.rows, :, part.queries]
            d_q[part.rows, :, part.queries], *others = torch.autograd.grad(mixed, inputs, of_mixed)
            _, *totals = part.of(q, *sums)
            for total, add in zip(totals, others, strict=True):
                total.add_(add)
        d_k, d_v, *d_begun = (x.to(k.dtype) for x in sums)
        return d_q, d_k, d_v, None, None, *(d_begun or (None, None))


def _length(beginnings: Sequence[Tensor]) -> int:
    """Return the number of keys before the rows' own."""
    return beginnings[0].shape[2] if beginnings else 0
