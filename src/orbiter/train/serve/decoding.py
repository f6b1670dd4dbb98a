"""Decode rows that join and leave at any step, which is continuous batching.

`Slots` keeps each row's keys and values in its own slot, so that a row may join or leave at any
step; it runs the engine's own layers, for the families that the fast forward knows. A prefix that
an earlier prompt or answer already ran is copied from a `PrefixStore`, not run again. `Windows`
serves every other model through the engine's generic decoder, where rows join only when no other
row is left, and nothing is reused. Sampling is in `batching.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.arithmetic import packed_linear
from orbiter.train.engine.forward.attend import attend, key_ends
from orbiter.train.engine.forward.fast import FastForward
from orbiter.train.engine.forward.layers import Layer, merged, packed_layers, trunk
from orbiter.train.engine.forward.packing import Rectangle
from orbiter.train.engine.forward.pointwise import rms_norm
from orbiter.train.serve.prefix import PrefixStore
from orbiter.train.serve.shared import WORTH_SHARING, SharedBeginning, common_length

if TYPE_CHECKING:
    from orbiter.train.engine.forward.generic import Decoder
    from orbiter.train.engine.policy import Policy

ROOM_STEP = 64
"""Slots grow to multiples of this many tokens, or by an eighth if that is more."""
SPARE_SHARE = 0.5
"""In 16 bits a step attends to whole slots, masked, if they are at most this share longer."""
KEPT_BYTES = 256 << 20
"""Memory of empty slots that is kept for later rows; any more is released."""
SHARED_TOKENS = 8
"""Prompts that join together wait for one another if they share at least this many new tokens."""


class Decoding(Protocol):
    """Rows of a model that are being decoded and do not begin or end together."""

    continuous: bool
    """Whether rows may join while others are active."""
    snapshot: bool
    """Whether active rows are unaffected by a change of the policy's weights."""
    asked_tokens: int
    """The prompt tokens of all rows that joined, counting a repeated prompt each time."""
    run_tokens: int
    """The prompt tokens that the model actually processed for them."""

    def new_tokens(self, prompt: Sequence[int]) -> int:
        """Count the tokens of a prompt that would have to be run."""

    def join(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "R V"]:
        """Run prompts, append `copies` rows for each, and return the logits of the next token."""

    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append one token to every row and return the logits of the next token."""

    def keep(self, rows: Sequence[int]) -> None:
        """Make row i the former row rows[i]; drop the others."""


def decoding(policy: Policy, *, cache_bytes: int, snapshot: bool) -> Decoding:
    """Prepare the policy's current weights for decoding rows.

    Args:
        policy: The model.
        cache_bytes: Memory for prefixes that were run before; 0 runs every prompt anew.
        snapshot: Copy the embedding and the norms too, so that a change of the policy's weights
            does not affect active rows (on a CPU; see `Decoding.snapshot`).
    """
    if isinstance(policy.forward, FastForward):
        return Slots(policy.forward, cache_bytes=cache_bytes, snapshot=snapshot)
    return Windows(policy)


class _Pending(NamedTuple):
    """A distinct prompt that waits to be run in its leading row."""

    token_ids: tuple[int, ...]
    row: int
    path: list[int]
    """Nodes of the prefix store that hold its beginning."""

    @property
    def new(self) -> int:
        return len(self.token_ids) - len(self.path)


class Slots:
    """Continuous batching over a cache [slots, kv_heads, length, D] a layer; rows fill it up."""

    continuous = True

    @torch.inference_mode()
    def __init__(self, forward: FastForward, *, cache_bytes: int, snapshot: bool) -> None:
        """Prepare the weights for sampling; the cache grows as rows need it."""
        body, shape = forward.body, forward.shape
        weight, norm = body.embed_tokens.weight, body.norm.weight
        self._forward = forward
        # On an accelerator the products use the model's own weights, so nothing is protected
        # there.
        self.snapshot = snapshot and weight.device.type == "cpu"
        self._layers = packed_layers(body, forward.dtype)
        if self.snapshot:
            weight, norm = weight.clone(), norm.clone()
            self._layers = [_with_own_norms(layer) for layer in self._layers]
        self._embedding, self._norm = weight, norm
        self._head = packed_linear(*merged([forward.model.lm_head]), forward.dtype)
        # In the policy's dtype, as the keys and values are; the embedding's weight is float32.
        empty = weight.new_empty(0, shape.kv_heads, 0, shape.head_dim).to(forward.dtype)
        self._empty = [empty] * len(self._layers)
        self._k, self._v = self._empty.copy(), self._empty.copy()
        self._length = torch.zeros(0, dtype=torch.long, device=weight.device)
        self._tokens: list[list[int]] = []
        self._store = PrefixStore(empty, len(self._layers), limit_bytes=cache_bytes)
        self._shared: SharedBeginning | None = None
        self.asked_tokens = self.run_tokens = 0

    def new_tokens(self, prompt: Sequence[int]) -> int:
        """Count the tokens of a prompt that would have to be run; the last one always is."""
        return max(1, len(prompt) - self._store.known(prompt))

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "R V"]:
        """Run the new part of each distinct prompt once, and copy it to all its rows' slots."""
        # One entry per row, so a prompt with n copies appears n times.
        of_row = list(chain.from_iterable(map(repeat, map(tuple, prompts), copies)))
        first = len(self._length)
        # Reserved for all rows first, since `_prefill` writes into the leaders' slots.
        self._reserve(first + len(of_row), max(map(len, of_row)))
        lengths = torch.tensor([len(token_ids) for token_ids in of_row], device=self._length.device)
        leader: dict[tuple[int, ...], int] = {}
        for slot, token_ids in enumerate(of_row):
            # The first row of a prompt runs it; the others copy its keys and values.
            leader.setdefault(token_ids, first + slot)
        logits: dict[tuple[int, ...], Tensor] = {}
        waiting = list(leader)
        while waiting:
            # Each round stores prefixes that the prompts of the next round find.
            waiting, ready = self._split(waiting, leader)
            for together in ready:
                for pending, row in zip(together, self._prefill(together), strict=True):
                    logits[pending.token_ids] = row
        # After all leaders have run.
        self._spread([leader[token_ids] for token_ids in of_row], first, int(lengths.max()))
        self._length = torch.cat([self._length, lengths])
        self._tokens += map(list, of_row)
        self._share()
        self.asked_tokens += sum(map(len, of_row))
        return torch.stack([logits[token_ids] for token_ids in of_row])

    @torch.inference_mode()
    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append a token to every row, each after its own last token."""
        at, rows = self._length, len(self._length)
        longest = int(at.max()) + 1
        self._reserve(rows, longest)
        room, shared = self._k[0].shape[2], self._shared
        # A product in 16 bits first copies keys that are not contiguous, as part of a slot is.
        whole = self._k[0].element_size() < 4 and room <= longest * (1 + SPARE_SHARE)
        seen = room if whole and not shared else longest
        begun = len(shared.token_ids) if shared else 0
        # A row sees its own tokens only up to its length; cells beyond belong to an earlier row.
        bias = self._bias(torch.arange(begun, seen, device=at.device) <= at[:, None])
        row = torch.arange(rows, device=at.device)

        def append(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._k[number], self._v[number]
            keys[row, :, at], values[row, :, at] = k, v
            parts = (keys[:rows, :, begun:seen], values[:rows, :, begun:seen])
            if shared:
                return shared.attend(number, q, *parts, bias)
            return attend(q[:, :, None], *parts, bias[:, None]).view(rows, -1)

        x = self._run(token_ids, at, append)
        self._length = at + 1
        for tokens, token_id in zip(self._tokens, token_ids.tolist(), strict=True):
            tokens.append(token_id)
        return self._logits(x)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Move only the rows that change position; dropped rows' prefixes go to the store."""
        stay = set(rows)
        for row, tokens in enumerate(self._tokens):
            if row not in stay:
                # Before slots are overwritten below, while the row's keys are still in place.
                self._remember(row, tokens)
        # Rows that stay in their slot cost nothing.
        moved = [(source, slot) for slot, source in enumerate(rows) if source != slot]
        if moved:
            # One assignment with index lists reads all sources before it writes, so rows may
            # swap.
            sources, places = (list(side) for side in zip(*moved, strict=True))
            longest = int(self._length[sources].max())
            for cache in (*self._k, *self._v):
                cache[places, :, :longest] = cache[sources, :, :longest]
        # Only when nothing is active, since releasing memory costs a new allocation later.
        if not rows and 2 * len(self._k) * self._k[0].nbytes > KEPT_BYTES:
            self._k, self._v = self._empty.copy(), self._empty.copy()
        self._length = self._length[list(rows)]
        self._tokens = [self._tokens[row] for row in rows]
        self._share()

    def _split(
        self, waiting: Sequence[tuple[int, ...]], leader: dict[tuple[int, ...], int]
    ) -> tuple[list[tuple[int, ...]], list[list[_Pending]]]:
        """Choose the prompts to run now; others wait if they share a beginning with one of them.

        Prompts of similar length run together, so that little of the attention is padding.
        """
        later: list[tuple[int, ...]] = []
        ready: dict[int, list[_Pending]] = {}
        begun: dict[tuple[int, ...], tuple[int, ...]] = {}
        for token_ids in waiting:
            path = self._path(token_ids)
            end = len(path) + SHARED_TOKENS
            # Of prompts with a long common beginning one runs first, and the others find it in the
            # store in the next round.
            if end < len(token_ids) and self._store.limit > end:
                if token_ids[:end] in begun:
                    later.append(token_ids)
                    continue
                begun[token_ids[:end]] = token_ids
            pending = _Pending(token_ids, leader[token_ids], path)
            # By powers of four in length.
            ready.setdefault(pending.new.bit_length() // 2, []).append(pending)
        return later, list(ready.values())

    def _prefill(self, ready: Sequence[_Pending]) -> Float[Tensor, "P V"]:
        """Run the new tokens of these prompts in their leading rows, and store their prefixes."""
        device = self._length.device
        # Looked up again, because an earlier group may have evicted prefixes.
        pending = [each._replace(path=self._path(each.token_ids)) for each in ready]
        for each in pending:
            self._recall(each)
        start = torch.tensor([len(each.path) for each in pending], device=device)
        new = torch.tensor([each.new for each in pending], device=device)
        rows = torch.tensor([each.row for each in pending], device=device)
        longest = max(len(each.token_ids) for each in pending)
        rectangle = Rectangle.of(new)
        along = torch.arange(rectangle.real.shape[1], device=device)
        at = start[:, None] + along
        # Every query sees the recalled prefix and the new tokens before it.
        bias = self._bias(torch.arange(longest, device=device) <= at[..., None])
        position = at[rectangle.real]
        row = rows[:, None].expand_as(rectangle.real)[rectangle.real]
        first, last = pending[0].row, pending[-1].row + 1
        adjacent = last - first == len(pending)  # so that their slots are a view, not a copy
        slots: Any = slice(first, last) if adjacent else rows

        ends = key_ends(bias)
        newest = new.cumsum(0) - 1
        last_bias = bias[torch.arange(len(pending), device=device), new - 1][:, None]

        def prefill(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._k[number], self._v[number]
            keys[row, :, position], values[row, :, position] = k, v
            seen = (keys[slots, :, :longest], values[slots, :, :longest])
            if len(q) < len(k):  # the last layer
                return attend(q[:, :, None], *seen, last_bias).flatten(1)
            return rectangle.pack(attend(rectangle.pad(q), *seen, bias, ends))

        ids = [token_id for each in pending for token_id in each.token_ids[len(each.path) :]]
        # Logits are needed after the last new token of each prompt alone.
        x = self._run(torch.tensor(ids, device=device), position, prefill, wanted=newest)
        self.run_tokens += len(ids)
        for each in pending:
            self._remember(each.row, each.token_ids)
        return self._logits(x)

    def _recall(self, pending: _Pending) -> None:
        """Copy the keys and values of the known beginning of a prompt to its row."""
        known = len(pending.path)
        nodes = torch.tensor(pending.path, dtype=torch.long, device=self._length.device)
        for number in range(len(self._k)) if known else ():
            k, v = self._store.read(number, nodes)
            self._k[number][pending.row, :, :known] = k
            self._v[number][pending.row, :, :known] = v

    def _path(self, token_ids: Sequence[int]) -> list[int]:
        """Find the known beginning of a prompt; its last token always runs, for its logits."""
        return self._store.match(token_ids)[: len(token_ids) - 1]

    def _spread(self, leaders: Sequence[int], first: int, longest: int) -> None:
        """Copy the leading rows to the rows with the same prompt."""
        copied = [(source, first + k) for k, source in enumerate(leaders) if source != first + k]
        if copied:
            sources, places = (list(side) for side in zip(*copied, strict=True))
            for cache in (*self._k, *self._v):
                cache[places, :, :longest] = cache[sources, :, :longest]

    def _share(self) -> None:
        """Find what all rows begin with, and keep its keys apart if that is worth it."""
        rows = self._tokens
        length = common_length(rows) if rows else 0
        if (len(rows) - 1) * length < WORTH_SHARING:
            self._shared = None
        elif not (self._shared and self._shared.fits(rows, length)):
            k, v = ([x[0, :, :length].clone() for x in cache] for cache in (self._k, self._v))
            self._shared = SharedBeginning(rows[0][:length], k, v)

    def _remember(self, row: int, token_ids: Sequence[int]) -> None:
        """Store a row's keys and values for later prompts that begin with the same tokens."""
        if self._store.limit:
            self._store.add(token_ids, [k[row] for k in self._k], [v[row] for v in self._v])

    def _reserve(self, rows: int, length: int) -> None:
        """Make room for this many rows of this length, if needed in a larger cache."""
        used = len(self._length)
        # Without rows, room that earlier answers needed is given back if it is far too much.
        if not used and self._k[0].shape[2] > 2 * max(length, ROOM_STEP):
            self._k, self._v = self._empty.copy(), self._empty.copy()
        slots, heads, room, width = self._k[0].shape
        if rows <= slots and length <= room:
            return
        slots = slots if rows <= slots else max(rows, 2 * slots)
        larger_room = room
        if length > room:
            # By steps, so that growing copies the cache seldom.
            steps = max(-(-length // ROOM_STEP), room // ROOM_STEP * 9 // 8)
            larger_room = steps * ROOM_STEP
        for caches in (self._k, self._v):
            for number, cache in enumerate(caches):
                # Zeros, because masked cells get weight 0, and 0 x NaN would still be NaN.
                larger = cache.new_zeros(slots, heads, larger_room, width)
                larger[:used, :, :room] = cache[:used]
                caches[number] = larger

    def _bias(self, seen: Tensor) -> Tensor:
        """Convert a mask of visible cells to a bias on the scores: 0, or minus infinity."""
        blank = torch.zeros(seen.shape, dtype=self._forward.dtype, device=seen.device)
        return blank.masked_fill_(~seen, -math.inf)

    def _run(
        self,
        token_ids: Tensor,
        position: Tensor,
        attention: Any,  # noqa: ANN401 - the layers' own callable
        wanted: Tensor | None = None,
    ) -> Tensor:
        forward = self._forward
        return trunk(
            self._layers,
            functional.embedding(token_ids, self._embedding),
            forward.shape,
            rotary=forward.rotary.at(position),
            attend=attention,
            dtype=forward.dtype,
            wanted=wanted,
        )

    def _logits(self, x: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        forward = self._forward
        return self._head(rms_norm(x, self._norm, forward.shape.eps, forward.dtype))


class Released:
    """Takes the place of a decoder whose weights and caches were dropped to free their memory."""

    continuous = True
    snapshot = False

    def __init__(self, before: Decoding, refuse: Callable[[], NoReturn]) -> None:
        """Keep the counts of the decoder before; `refuse` raises the error of a request."""
        self.asked_tokens, self.run_tokens = before.asked_tokens, before.run_tokens
        self._refuse = refuse

    def new_tokens(self, prompt: Sequence[int]) -> int:
        """Count the tokens of a prompt."""
        return len(prompt)

    def join(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "R V"]:
        """Refuse."""
        del prompts, copies
        self._refuse()

    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Refuse."""
        del token_ids
        self._refuse()

    def keep(self, rows: Sequence[int]) -> None:
        """Do nothing: there are no rows."""


class Windows:
    """Batches whose rows begin together, for models that need Hugging Face's own forward."""

    continuous = False
    snapshot = False

    def __init__(self, policy: Policy) -> None:
        """Decode with this policy, whose weights are read when a batch begins."""
        self._policy = policy
        self._decoder: Decoder | None = None
        self.asked_tokens = self.run_tokens = 0

    def new_tokens(self, prompt: Sequence[int]) -> int:
        """Count the tokens of a prompt: nothing is reused here."""
        return len(prompt)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "R V"]:
        """Begin a batch."""
        rows = [prompt for prompt, n in zip(prompts, copies, strict=True) for _ in range(n)]
        self.asked_tokens += sum(map(len, rows))
        self.run_tokens += sum(map(len, rows))
        # The whole rest of the context, as the lengths of the answers are not known yet.
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
        """Keep only these rows."""
        assert self._decoder is not None, "rows have joined"
        if rows:
            # Without rows the next join makes a new decoder, so nothing has to be removed.
            self._decoder.keep(torch.tensor(list(rows), device=self._policy.device))


def _with_own_norms(layer: Layer) -> Layer:
    """Copy a packed layer's norms, which are the model's own tensors; the products are copies."""
    head_norms = layer.head_norms and (layer.head_norms[0].clone(), layer.head_norms[1].clone())
    return layer._replace(
        attention_norm=layer.attention_norm.clone(),
        mlp_norm=layer.mlp_norm.clone(),
        head_norms=head_norms,
    )
