"""Attention for rows that share a prompt: `PackedAttention` for updates, `Cache` for sampling.

A prompt's queries attend to the prompt; an answer's queries attend to its prompt and to the answer
so far. Both classes run and store a prompt once per group. Where an update takes several
micro-batches for the answers to one prompt, `PromptAttention` runs the prompt before them, and
`AnswerAttention` reads its keys. The products are in `attend.py`. Sliding windows are not
supported; models that have them use the generic path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.engine.forward.attend import Beginning, attend, key_ends
from orbiter.train.engine.forward.layers import Shape
from orbiter.train.engine.forward.packing import Packing, Rectangle


class _Queries(NamedTuple):
    """The queries of the prompts, or of the answers, and which keys they see."""

    rectangle: Rectangle
    bias: Float[Tensor, "R Q K"]
    ends: Sequence[int]
    """What `key_ends` returns for the bias, found once for all layers."""

    @classmethod
    def of(cls, rectangle: Rectangle, bias: Float[Tensor, "R Q K"]) -> _Queries:
        """Find how far each block of queries sees."""
        return cls(rectangle, bias, key_ends(bias))

    def only(self, tokens: Int[Tensor, "M"]) -> _Queries:
        """Keep the queries of these packed tokens, whose numbers ascend."""
        rows, longest = self.rectangle.real.shape
        cell = self.rectangle.cell[tokens]
        rectangle = Rectangle.of(torch.bincount(cell // longest, minlength=rows))
        # Padding takes the first column, which sees at least one key.
        column = cell.new_zeros(rectangle.real.shape)
        column[rectangle.real] = cell % longest
        keys = self.bias.shape[2]
        chosen = self.bias.gather(1, column[..., None].expand(-1, -1, keys))
        return _Queries.of(rectangle, chosen)


class PackedAttention:
    """Causal attention over a `Packing`, with gradients."""

    def __init__(self, packing: Packing, dtype: torch.dtype, *, wanted: Int[Tensor, "M"]) -> None:
        """Compute the attention masks, which all layers share.

        Args:
            packing: The tokens.
            dtype: The dtype of the queries and keys.
            wanted: The tokens whose queries the last layer passes, in ascending order.
        """
        self.packing = packing
        self.prompt_of_row: list[int] = packing.prompt_of_row.tolist()
        prompts = packing.prompts.real
        causal = _causal(prompts.shape[1], prompts.device).expand(len(prompts), -1, -1)
        of_prompts = _Queries.of(packing.prompts, _bias(causal, dtype))
        of_answers = _queries_of_answers(packing, dtype)
        first = len(packing.prompts.cell)
        self.split = [first, len(packing.answers.cell)]
        self.all = of_prompts, of_answers
        self.wanted = (
            of_prompts.only(wanted[wanted < first]),
            of_answers.only(wanted[wanted >= first] - first),
        )

    def __call__(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "N heads*D"]:
        """Attend within each prompt, and from each answer to its prompt and itself."""
        del number
        # With fewer queries than keys it is the last layer.
        of_prompts, of_answers = self.all if len(q) == len(k) else self.wanted
        qp, qa = q.split([len(of_prompts.rectangle.cell), len(of_answers.rectangle.cell)])
        # Split at the boundary between prompt and answer tokens, as `Packing` concatenates them.
        (kp, ka), (vp, va) = (x.split(self.split) for x in (k, v))
        kp, vp = self.packing.prompts.pad(kp), self.packing.prompts.pad(vp)
        mixed = _mix(of_prompts, qp, kp, vp)
        # A micro-batch may have no answer tokens beyond the first, which the prompt's last state
        # predicts.
        if self.split[1] == 0:
            return mixed
        answers = self.packing.answers
        # Each answer row reads its prompt's keys; gradients of all rows add up in `kp`.
        beginning = Beginning(kp, vp, self.prompt_of_row)
        of_rows = _mix(of_answers, qa, answers.pad(ka), answers.pad(va), beginning)
        return torch.cat([mixed, of_rows])


class PromptAttention:
    """Causal attention over one prompt, whose keys and values are kept for `AnswerAttention`."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        """Compute the mask of a prompt of this many tokens."""
        rectangle = Rectangle.of(torch.tensor([length], device=device))
        self.all = _Queries.of(rectangle, _bias(_causal(length, device)[None], dtype))
        self.last = self.all.only(torch.tensor([length - 1], device=device))
        self.k: list[Float[Tensor, "1 kv_heads P D"]] = []
        """The keys of each layer that has run."""
        self.v: list[Float[Tensor, "1 kv_heads P D"]] = []

    def __call__(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "N heads*D"]:
        """Attend within the prompt; in the last layer with the query of its last token alone."""
        del number
        # With fewer queries than keys it is the last layer.
        queries = self.all if len(q) == len(k) else self.last
        k, v = (self.all.rectangle.pad(x) for x in (k, v))
        self.k.append(k)
        self.v.append(v)
        return _mix(queries, q, k, v)


class AnswerAttention:
    """Attention of the answers to one prompt, which has run before, with gradients."""

    def __init__(
        self,
        packing: Packing,
        dtype: torch.dtype,
        *,
        wanted: Int[Tensor, "M"],
        k: Sequence[Float[Tensor, "1 kv_heads P D"]],
        v: Sequence[Float[Tensor, "1 kv_heads P D"]],
    ) -> None:
        """Compute the masks, which all layers share.

        Args:
            packing: The tokens; all rows have the same prompt.
            dtype: The dtype of the queries and keys.
            wanted: The tokens whose queries the last layer passes, in ascending order, counted
                from the first answer token.
            k: The keys of the prompt in each layer.
            v: Its values.
        """
        self.answers, self.k, self.v = packing.answers, k, v
        self.all = _queries_of_answers(packing, dtype)
        self.wanted = self.all.only(wanted)

    def __call__(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "N heads*D"]:
        """Attend from each answer to the prompt and itself."""
        queries = self.all if len(q) == len(k) else self.wanted
        k, v = self.answers.pad(k), self.answers.pad(v)
        beginning = Beginning(self.k[number], self.v[number], [0] * len(k))
        return _mix(queries, q, k, v, beginning)


def _queries_of_answers(packing: Packing, dtype: torch.dtype) -> _Queries:
    """Let each answer's queries see its prompt, and the answer so far."""
    prompts, answers = packing.prompts.real, packing.answers.real
    seen = torch.cat(
        [
            prompts[packing.prompt_of_row][:, None].expand(-1, answers.shape[1], -1),
            _causal(answers.shape[1], answers.device).expand(len(answers), -1, -1),
        ],
        dim=-1,
    )
    return _Queries.of(packing.answers, _bias(seen, dtype))


def _mix(
    queries: _Queries, q: Tensor, k: Tensor, v: Tensor, beginning: Beginning | None = None
) -> Float[Tensor, "N heads*D"]:
    """Attend with packed queries to padded keys and values."""
    rectangle, bias, ends = queries
    mixed = attend(rectangle.pad(q), k, v, bias, ends, beginning=beginning)
    return rectangle.pack(mixed)


class Cache:
    """Keys and values during sampling: each prompt's once, and those of each row's new tokens.

    Rows are assigned to slots, with the same number of slots for each prompt, so that one product
    serves all prompts however many rows each has.
    """

    def __init__(
        self, prompts: Rectangle, *, room: int, layers: int, shape: Shape, dtype: torch.dtype
    ) -> None:
        """Reserve space for one row per prompt, of up to `room` new tokens."""
        self.prompts, self.shape = prompts, shape
        device, rows = prompts.real.device, len(prompts.real)
        size = (layers, rows * shape.kv_heads, room, shape.head_dim)
        # Not zeroed: only cells that were written are ever read.
        self.own_k = list(torch.empty(size, dtype=dtype, device=device))
        self.own_v = list(torch.empty(size, dtype=dtype, device=device))
        self.used = 0
        self.prompt_k: list[Tensor] = []
        self.prompt_v: list[Tensor] = []
        self.owner = torch.arange(rows, device=device)
        """Index of each row's prompt, in ascending order."""
        self.slot, self.n = self.owner, 1
        self.causal = _bias(_causal(prompts.real.shape[1], device)[None], dtype)
        self.ends = key_ends(self.causal)
        # One bias row per key head, since the batch axis of the products is prompts x key heads.
        self.prompt_bias = _bias(prompts.real[:, None], dtype).repeat_interleave(shape.kv_heads, 0)

    def prefill(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "N heads*D"]:
        """Attend within the packed prompts, and store their keys and values."""
        del number
        k, v = self.prompts.pad(k), self.prompts.pad(v)
        self.prompt_k.append(k.flatten(0, 1))
        self.prompt_v.append(v.flatten(0, 1))
        bias = self.causal.expand(len(k), -1, -1)
        return self.prompts.pack(attend(self.prompts.pad(q), k, v, bias, self.ends))

    def step(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "B heads*D"]:
        """Append a token to every row and attend, with one softmax over prompt and row scores."""
        own_k, own_v = self.own_k[number], self.own_v[number]
        # The cache is written in place: sampling never needs gradients.
        own_k[:, self.used] = k.flatten(0, 1)
        own_v[:, self.used] = v.flatten(0, 1)
        own_k, own_v = own_k[:, : self.used + 1], own_v[:, : self.used + 1]
        # Rows of a prompt share its keys: their queries are stacked into one product per prompt.
        # The scale is applied to the queries, which are fewer than the scores.
        q = (q / math.sqrt(self.shape.head_dim)).view(len(own_k), -1, self.shape.head_dim)
        shared = torch.baddbmm(
            self.prompt_bias, self._to_slots(q), self.prompt_k[number].transpose(1, 2)
        )
        own = torch.bmm(q, own_k.transpose(1, 2))
        # One softmax over both parts: a row's own tokens compete with those of the prompt.
        weight = torch.cat([self._to_rows(shared), own], dim=-1).softmax(dim=-1)
        of_prompt, of_own = weight.split([shared.shape[-1], own.shape[-1]], dim=-1)
        mixed = torch.bmm(self._to_slots(of_prompt), self.prompt_v[number])
        return torch.baddbmm(self._to_rows(mixed), of_own, own_v).view(len(self.slot), -1)

    def keep(self, rows: Int[Tensor, "R"]) -> None:
        """Continue with these rows, those of a prompt adjacent; drop prompts without a row."""
        kv_heads = self.shape.kv_heads
        for caches in (self.own_k, self.own_v):
            for number, cache in enumerate(caches):
                by_row = cache.view(-1, kv_heads, *cache.shape[1:])
                fresh = cache.new_empty(len(rows), *by_row.shape[1:])
                # Only the filled columns are copied; the rest of the buffer is still unwritten.
                fresh[:, :, : self.used] = by_row[rows, :, : self.used]
                caches[number] = fresh.flatten(0, 1)
        alive, self.owner, count = self.owner[rows].unique(return_inverse=True, return_counts=True)
        # Every prompt gets as many slots as the one with the most rows; some may stay empty.
        self.n = int(count.max())
        index = torch.arange(len(rows), device=rows.device)
        # cumsum - count is the first row of each prompt, so this is the row's index within its
        # prompt.
        self.slot = self.owner * self.n + index - (count.cumsum(0) - count)[self.owner]
        # Dropping a prompt copies its keys, so it is done only if one has really lost all rows.
        if len(alive) * kv_heads < len(self.prompt_bias):
            heads = (
                alive[:, None] * kv_heads + torch.arange(kv_heads, device=rows.device)
            ).flatten()
            self.prompt_k = [k[heads] for k in self.prompt_k]
            self.prompt_v = [v[heads] for v in self.prompt_v]
            self.prompt_bias = self.prompt_bias[heads]

    def _to_slots(self, x: Float[Tensor, "B*kv share X"]) -> Float[Tensor, "P*kv n*share X"]:
        """Stack the rows of each prompt in its slots; empty slots are zero."""
        prompts, kv_heads = len(self.prompt_bias) // self.shape.kv_heads, self.shape.kv_heads
        share, width = x.shape[1:]
        slots = x.reshape(-1, kv_heads * share * width)
        if len(self.slot) < prompts * self.n:
            blank = slots.new_zeros(prompts * self.n, slots.shape[1])
            slots = blank.index_copy(0, self.slot, slots)
        by_prompt = slots.view(prompts, self.n, kv_heads, share, width).transpose(1, 2)
        return by_prompt.reshape(prompts * kv_heads, self.n * share, width)

    def _to_rows(self, x: Float[Tensor, "P*kv n*share X"]) -> Float[Tensor, "B*kv share X"]:
        """Undo `_to_slots`."""
        prompts, kv_heads = len(self.prompt_bias) // self.shape.kv_heads, self.shape.kv_heads
        share, width = x.shape[1] // self.n, x.shape[2]
        slots = x.view(prompts, kv_heads, self.n, share, width).transpose(1, 2)
        rows = slots.reshape(prompts * self.n, kv_heads, share, width)
        if len(self.slot) < len(rows):
            rows = rows[self.slot]
        return rows.reshape(-1, share, width)


def _causal(length: int, device: torch.device) -> Bool[Tensor, "L L"]:
    """Return the causal mask: each position sees itself and the positions before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril_()


def _bias(seen: Bool[Tensor, "*axes"], dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """Convert a mask into a bias added to the scores: 0 if seen, else minus infinity."""
    # Every query sees at least one key, so no row of scores is all minus infinity, which would be
    # NaN.
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)
