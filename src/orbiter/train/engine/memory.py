"""Estimate the peak memory of a run before it starts.

The estimate is computed from the tensor shapes: weights, gradients, optimiser state, and the larger
of two phases: sampling (packed weights, cache, logits) and learning (activations kept by autograd,
the saved softmax, the head's gradient). Heap fragmentation within a phase is accounted for. The
memory of reward functions and tokenizers is not.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from orbiter.train.engine.arithmetic import DTYPES
from orbiter.train.engine.forward.attend import LONG_FROM
from orbiter.train.engine.forward.head import CHUNK_ELEMENTS
from orbiter.train.engine.update import MICRO_BATCH_TOKENS, room_beside

FLOAT32 = 4
"""Bytes of a master weight, a gradient, and each of AdamW's two moments."""
LOGIT_COPIES = 4
"""Number of [B V] float32 tensors one draw holds: logits, mass, cumulative sum, scaled logits."""
CHUNK_COPIES = 6
"""Number of float32 tensors of a chunk's logits that comparing two distributions holds."""
HOLES = 1.5
"""Bytes that glibc's heap grows by for each byte that a phase holds at its peak.

A freed block leaves a hole that the next block of the same size does not fit into, because torch
asks for aligned blocks and glibc needs 96 extra bytes to align one. Measured: 1.4 to 1.55
(docs/engine.md).
"""
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Estimated bytes of a run, by purpose."""

    resident: int
    """Memory already in use: libraries, weights, the frozen reference."""
    optimiser: int
    """AdamW's two moments of every trained weight."""
    gradient: int
    """Gradients that one micro-batch leaves for the next to add to. With a single micro-batch this
    is 0, because its gradients reuse the memory of the activations that have been freed."""
    rollout: int
    """Used while sampling: packed weights, cache of keys and values, logits."""
    update: int
    """Used while learning, in addition to gradients: activations, softmax, joined weights."""

    @property
    def total(self) -> int:
        """The peak in bytes; sampling and learning never run at the same time."""
        phases = max(self.rollout, self.gradient + self.update)
        return self.resident + self.optimiser + phases

    def __str__(self) -> str:
        gib = {
            "resident": self.resident,
            "optimiser": self.optimiser,
            "sampling": self.rollout,
            "learning": self.gradient + self.update,
        }
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in gib.items())
        return f"about {self.total / GIB:.1f} GiB at the peak ({parts})"


class Measurable(Protocol):
    """The attributes that an estimate reads: a policy has them, as does an outline of a model."""

    @property
    def model(self) -> Any: ...  # noqa: ANN401, D102 - a model of transformers or peft
    @property
    def path(self) -> str: ...  # noqa: D102 - "fast" or "generic"
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def adapted(self) -> bool: ...  # noqa: D102 - whether adapters are trained
    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""


def memory_estimate(
    policy: Measurable,
    *,
    prompts: int,
    n: int,
    prompt_tokens: int,
    new_tokens: int,
    trained_tokens: int | None = None,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    teacher: Measurable | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of steps with `n` answers to each of `prompts` prompts.

    `prompt_tokens` and `new_tokens` are the largest expected lengths. If `new_tokens` is 0, nothing
    is sampled: `prompt_tokens` then includes the answer, as in SFT, and `trained_tokens` of it are
    trained on (None means all). A `teacher` is one whose distributions are compared in every
    update; its weights count as resident once it is loaded.
    """
    dims = _Dimensions.of(policy)
    batch = _EqualRows.of_batch(policy, prompts, n, prompt_tokens, new_tokens)
    largest = _LargestPart.of(batch, prompts, n, micro_batch_tokens)
    tokens, share = sum(block.tokens for block in largest.blocks), largest.share
    answers = share * largest.rows * (new_tokens or trained_tokens or prompt_tokens)
    # Gradients that must persist between micro-batches are counted apart, in `gradient`.
    # With one micro-batch the gradients take the place of activations that backward has freed.
    several, gradient = largest.several, FLOAT32 * dims.trained
    # The loss comes from glibc's way of aligning blocks; see HOLES.
    holes = HOLES if policy.device.type == "cpu" and platform.libc_ver()[0] == "glibc" else 1.0
    if teacher is None:
        head = dims.head(answers, again=several)
    else:
        taught = _Dimensions.of(teacher)
        head = dims.compared_head(answers) + taught.read(share * tokens, answers)
    kept = dims.kept(largest.blocks) * share + head + dims.joined
    cached = sum(block.tokens for block in batch)
    drawn = dims.sampling(cached, rows=prompts * n) if new_tokens else 0
    return MemoryEstimate(
        resident=_resident(policy),
        optimiser=2 * FLOAT32 * dims.trained,
        gradient=gradient if several else 0,
        rollout=int(drawn),
        update=max(int(holes * kept), 0 if several else gradient),
    )


class _EqualRows(NamedTuple):
    """Rows of equal length, with the number of keys that their queries attend to."""

    rows: int
    queries: int
    keys: int

    @classmethod
    def of_batch(
        cls, policy: Measurable, prompts: int, n: int, prompt_tokens: int, new_tokens: int
    ) -> list[_EqualRows]:
        """Split a batch as the policy's forward pass does: the fast one runs each prompt once."""
        length = prompt_tokens + new_tokens
        # In SFT the prompt is inside `prompt_tokens`, and rows rarely share one.
        if policy.path != "fast" or not new_tokens:
            return [cls(prompts * n, length, length)]
        answers = cls(prompts * n, new_tokens, length)
        return [cls(prompts, prompt_tokens, prompt_tokens), answers]

    @property
    def tokens(self) -> int:
        """Number of tokens that go through the model."""
        return self.rows * self.queries


class _LargestPart(NamedTuple):
    """What the largest micro-batch of an update holds: a share of some rows."""

    blocks: list[_EqualRows]
    share: float
    rows: int
    """Rows with trained tokens, of which it holds the share."""
    several: bool
    """Whether the update takes more than one micro-batch."""

    @classmethod
    def of(cls, batch: list[_EqualRows], prompts: int, n: int, budget: int) -> _LargestPart:
        """Cut a batch as an update does."""
        tokens = sum(block.tokens for block in batch)
        # Only the fast forward pass runs prompts apart from answers. Where the answers to a prompt
        # do not fit, it runs once, and is held while some of them at a time are learned from.
        if len(batch) > 1 and tokens > prompts * budget:
            prompt, answers = batch
            room = room_beside(prompt.queries, budget)
            parts = math.ceil(n / max(1, room // answers.queries))
            together = math.ceil(n / parts)
            blocks = [prompt._replace(rows=1), answers._replace(rows=together)]
            return cls(blocks, 1.0, together, several=prompts * n > together)
        longest = max(block.queries for block in batch)
        # At least one row is always processed, even if it is longer than the limit.
        share = min(1.0, max(budget, longest) / tokens)
        return cls(batch, share, prompts * n, several=share < 1)


class _Dimensions(NamedTuple):
    """The sizes of a policy that its memory depends on."""

    weights: int
    trained: int
    """Number of trained parameters."""
    adapted: bool
    """Whether adapters are trained, so that the weights themselves need no gradient."""
    layers: int
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    rank: int
    """Rank of the adapters; 0 without adapters."""
    fast: bool
    on_cpu: bool
    width: int
    """Bytes per number in the policy's dtype."""

    @classmethod
    def of(cls, policy: Measurable) -> _Dimensions:
        """Read the sizes of a policy; some model families omit a field, which has a default."""
        config: Any = policy.model.config
        heads = config.num_attention_heads
        adapters: Any = getattr(policy.model, "peft_config", {})
        return cls(
            weights=sum(p.numel() for p in policy.model.parameters()),
            trained=sum(p.numel() for p in policy.named_trainable().values()),
            adapted=policy.adapted,
            layers=config.num_hidden_layers,
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", heads),
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            # GPT-2's `n_inner` is None by default, which means four times the hidden size.
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            rank=sum(adapter.r for adapter in adapters.values()),
            fast=policy.path == "fast",
            on_cpu=policy.device.type == "cpu",
            width=DTYPES[policy.dtype].itemsize,
        )

    @property
    def joined(self) -> int:
        """Bytes of the copied weights: cast to the dtype, or joined for query, key and value."""
        # In bfloat16 every weight is cast; in float32 only joined projections are copied.
        if self.width < FLOAT32:
            return self.width * self.weights
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden
        return FLOAT32 * self.layers * qkv if self.fast else 0

    def sampling(self, cached: int, *, rows: int) -> int:
        """Bytes of the packed weights, of the cached keys and values, and of a draw's logits."""
        cache = 2 * self.layers * self.kv_heads * self.head_dim * self.width
        logits = LOGIT_COPIES * FLOAT32 * self.vocabulary
        return self.weights * self.width + cached * cache + rows * logits

    def kept(self, batch: list[_EqualRows]) -> int:
        """Bytes that autograd keeps for these rows between forward and backward."""
        tokens = sum(block.tokens for block in batch)
        every = self.layers * (tokens * self._of_token() + sum(map(self._of_attention, batch)))
        # Only the fast forward pass runs prompts apart from answers.
        return every - self._spared(batch[0]) if len(batch) > 1 else every

    def _spared(self, prompts: _EqualRows) -> int:
        """Bytes that the last layer does not keep: of a prompt, it computes the last token alone.

        It still normalises every token, for keys and values.
        """
        keys_and_values = self._of_norm() + self.width * 3 * self.rank
        others = prompts.tokens - prompts.rows
        attention = self._of_attention(prompts) - self._of_attention(prompts._replace(queries=1))
        return others * (self._of_token() - keys_and_values) + attention

    def head(self, answers: float, *, again: bool) -> float:
        """Bytes of the head: the softmax of the answers, and the head's gradient.

        With several micro-batches (`again`), the previous one's softmax is still in memory.
        """
        softmax = answers * self.vocabulary * self.width * (2 if again else 1)
        return softmax + (0 if self.adapted else self.vocabulary * self.hidden * FLOAT32)

    def compared_head(self, answers: float) -> float:
        """Bytes of the head where it is compared with a teacher's: chunks, and the head's gradient.

        The backward pass computes the logits again, so no softmax is kept.
        """
        chunk = min(answers * self.vocabulary, CHUNK_ELEMENTS) * FLOAT32 * CHUNK_COPIES
        states = 2 * answers * self.hidden * self.width
        # One gradient is summed over the chunks, and one is that of the last chunk.
        gradient = 0 if self.adapted else 2 * self.vocabulary * self.hidden * FLOAT32
        return chunk + states + gradient

    def read(self, tokens: float, answers: float) -> float:
        """Bytes of a pass without gradient: a layer's tensors, the states of answers, weights."""
        layer = tokens * (3 * self.hidden * FLOAT32 + 3 * self.inner * self.width)
        return layer + answers * self.hidden * FLOAT32 + self.joined

    def _of_token(self) -> int:
        """Bytes that one token takes in a layer, apart from attention.

        These are two norms, gate, up and their product, and the low-rank states of the seven
        adapters. Hugging Face's forward pass keeps silu(gate) as well.
        """
        norms = 2 * self._of_norm()
        # Autocast casts per product and keeps each cast for backward; the fast path casts once.
        if not self.fast and self.width < FLOAT32:
            norms += 3 * self.hidden * self.width  # five products, each casting its own input
        return norms + self.width * ((3 if self.fast else 4) * self.inner + 7 * self.rank)

    def _of_norm(self) -> int:
        """Bytes that one token takes in a norm: its input, its output, and one number.

        Hugging Face's forward pass keeps the normalised input as well if the norm is trained.
        """
        wide = 1 if self.fast or self.adapted else 2
        return self.hidden * (FLOAT32 * wide + self.width) + FLOAT32

    def _of_attention(self, block: _EqualRows) -> int:
        """Bytes of attention in a layer for these rows: queries, output, keys, values, softmax.

        Long rows keep no softmax. The fused kernel keeps keys and values for every head and the
        output twice; attention in blocks, which only a CPU uses, does not.
        """
        long = block.queries * block.keys >= LONG_FROM
        fused = not self.fast or not self.on_cpu or (long and self.width == FLOAT32)
        own = (3 if fused else 2) * self.heads * self.head_dim * block.queries
        seen = 2 * (self.heads if fused else self.kv_heads) * self.head_dim * block.keys
        softmax = 0 if fused or long else self.heads * block.queries * block.keys
        return self.width * block.rows * (own + seen + softmax)


def _resident(policy: Measurable) -> int:
    """Return the bytes already in use, on the accelerator or by this process."""
    # A GPU's memory is the scarce one there; the host's is not counted.
    if policy.device.type == "cuda":
        return int(torch.cuda.memory_allocated(policy.device))
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        pages = int(statistics.read_text(encoding="ascii").split()[1])
        # statm counts pages; memory that the allocator holds for reuse does not add to the peak.
        return pages * int(os.sysconf("SC_PAGE_SIZE")) - _free_in_heap()
    return FLOAT32 * int(sum(p.numel() for p in policy.model.parameters()))


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2` (malloc.h)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _free_in_heap() -> int:
    """Return the bytes in memory that the C library holds for reuse, as after an earlier run."""
    if platform.libc_ver()[0] != "glibc":
        return 0
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc has it since 2.33
    if ask is None:
        return 0
    # ctypes assumes int, which would cut a structure to its first word.
    ask.restype = _Heap
    # Not `fordblks`, which counts addresses at the heap's end that were never in memory.
    return max(0, _heap_in_memory() - int(ask().uordblks))


def _heap_in_memory() -> int:
    """Return the bytes of the heap that are in memory, as /proc/self/smaps lists them."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("Rss:"):
            total += int(line.split()[1]) if inside else 0
        elif "-" in line.partition(" ")[0]:  # the addresses of a mapping, and its name at the end
            inside = line.endswith("[heap]")
    return total << 10
