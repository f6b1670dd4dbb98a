"""Rows that come and go while a model decodes: what continuous batching stands on.

`Slots` keeps each row's keys and values in a slot of its own, so that a row may join or leave at
any step; it runs the engine's own layers, for the families that the fast forward knows. `Windows`
serves every other model through the engine's generic decoder, where rows join only when none is
left. Left out: sampling and who asked (`batching.py`), and reuse of a prompt that was run before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.arithmetic import packed_linear
from orbiter.train.engine.forward.attention import attend
from orbiter.train.engine.forward.fast import FastForward
from orbiter.train.engine.forward.layers import merged, packed_layers, rms_norm, trunk
from orbiter.train.engine.forward.packing import Rectangle

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.rollout import Decoder

FIRST_LENGTH = 256
"""Tokens that a slot has room for at first; the room doubles."""


class Decoding(Protocol):
    """A model in the middle of drawing rows that do not begin and end together."""

    continuous: bool
    """Whether rows may join others that are on their way."""

    def join(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "R V"]:
        """Run prompts, append so many rows for each, and return the logits of their first token."""

    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append one token to every row and return the logits of the next."""

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i be what row rows[i] is; forget the others."""


def decoding(policy: Policy) -> Decoding:
    """Copy the policy's present weights into what can be drawn from row by row."""
    return Slots(policy.forward) if isinstance(policy.forward, FastForward) else Windows(policy)


class Slots:
    """Continuous batching over a cache [slots, kv_heads, length, D] a layer; rows fill it up."""

    continuous = True

    @torch.inference_mode()
    def __init__(self, forward: FastForward) -> None:
        """Lay the weights out for sampling; the cache grows with what is asked."""
        body, shape = forward.body, forward.shape
        weight = body.embed_tokens.weight
        self._forward, self._embedding, self._norm = forward, weight, body.norm.weight
        self._layers = packed_layers(body, forward.dtype)
        self._head = packed_linear(*merged([forward.model.lm_head]), forward.dtype)
        empty = weight.new_empty(0, shape.kv_heads, FIRST_LENGTH, shape.head_dim).to(forward.dtype)
        self._empty = [empty] * len(self._layers)
        self._k, self._v = self._empty.copy(), self._empty.copy()
        self._length = torch.zeros(0, dtype=torch.long, device=weight.device)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "R V"]:
        """Run each prompt once and copy its keys and values to its rows' slots."""
        device = self._length.device
        length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        of_row = torch.tensor(
            list(chain.from_iterable(repeat(p, n) for p, n in enumerate(copies))), device=device
        )
        rectangle = Rectangle.of(length)
        first, last = len(self._length), len(self._length) + len(of_row)
        longest = rectangle.real.shape[1]
        self._reserve(last, longest)
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril_()
        bias = self._bias(causal).expand(len(prompts), -1, -1)

        def prefill(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = rectangle.pad(k), rectangle.pad(v)
            self._k[number][first:last, :, :longest] = k[of_row]
            self._v[number][first:last, :, :longest] = v[of_row]
            return rectangle.pack(attend(rectangle.pad(q), k, v, bias))

        token_ids = torch.tensor([i for prompt in prompts for i in prompt], device=device)
        along = torch.arange(longest, device=device).expand_as(rectangle.real)
        x = self._run(token_ids, along[rectangle.real], prefill)
        self._length = torch.cat([self._length, length[of_row]])
        return self._logits(x[length.cumsum(0) - 1])[of_row]

    @torch.inference_mode()
    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append a token to every row, each at its own place."""
        at, rows = self._length, len(self._length)
        longest = int(at.max()) + 1
        self._reserve(rows, longest)
        row = torch.arange(rows, device=at.device)
        bias = self._bias(torch.arange(longest, device=at.device) <= at[:, None])[:, None]

        def append(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._k[number], self._v[number]
            keys[row, :, at], values[row, :, at] = k, v
            seen = (keys[:rows, :, :longest], values[:rows, :, :longest])
            return attend(q[:, :, None], *seen, bias).view(rows, -1)

        x = self._run(token_ids, at, append)
        self._length = at + 1
        return self._logits(x)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Move only the rows that change their place; with the last row all memory goes."""
        if not rows:
            self._k, self._v = self._empty.copy(), self._empty.copy()
        moved = [(source, place) for place, source in enumerate(rows) if source != place]
        if moved:
            sources, places = (list(side) for side in zip(*moved, strict=True))
            longest = int(self._length[sources].max())
            for cache in (*self._k, *self._v):
                cache[places, :, :longest] = cache[sources, :, :longest]
        self._length = self._length[list(rows)]

    def _reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of so many tokens; what is there moves into a larger cache."""
        slots, heads, room, width = self._k[0].shape
        if rows <= slots and length <= room:
            return
        slots = slots if rows <= slots else max(rows, 2 * slots)
        larger_room = room if length <= room else 1 << (length - 1).bit_length()
        used = len(self._length)
        for caches in (self._k, self._v):
            for number, cache in enumerate(caches):
                # Zeros: what a row does not see has weight 0, and 0 x NaN would still be NaN.
                larger = cache.new_zeros(slots, heads, larger_room, width)
                larger[:used, :, :room] = cache[:used]
                caches[number] = larger

    def _bias(self, seen: Tensor) -> Tensor:
        """Turn "sees" into what is added to a score: 0, or minus infinity."""
        blank = torch.zeros(seen.shape, dtype=self._forward.dtype, device=seen.device)
        return blank.masked_fill_(~seen, -math.inf)

    def _run(self, token_ids: Tensor, position: Tensor, attention: Any) -> Tensor:  # noqa: ANN401 - the layers' own callable
        forward = self._forward
        return trunk(
            self._layers,
            functional.embedding(token_ids, self._embedding),
            forward.shape,
            rotary=forward.rotary.at(position),
            attend=attention,
            dtype=forward.dtype,
        )

    def _logits(self, x: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        normed = rms_norm(x, self._norm, self._forward.shape.eps)
        return self._head(normed.to(self._forward.dtype))


class Windows:
    """Batches that begin together: for models that only Hugging Face's own forward can run."""

    continuous = False

    def __init__(self, policy: Policy) -> None:
        """Take the policy, whose weights are read when a batch begins."""
        self._policy = policy
        self._decoder: Decoder | None = None

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "R V"]:
        """Begin a batch."""
        rows = [prompt for prompt, n in zip(prompts, copies, strict=True) for _ in range(n)]
        room = self._policy.context_length - max(map(len, rows))
        self._decoder = self._policy.forward.decoder(rows, room)
        return self._decoder.start()

    @torch.inference_mode()
    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append one token to every row."""
        assert self._decoder is not None, "rows have joined"
        return self._decoder.step(token_ids)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        assert self._decoder is not None, "rows have joined"
        if rows:
            self._decoder.keep(torch.tensor(list(rows), device=self._policy.device))
