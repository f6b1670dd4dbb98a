"""How much memory a run will take at its peak, told before it starts.

Counted from the shapes: weights, gradients, optimiser, and the larger of the two phases, sampling
(packed weights, cache, logits) and learning (activations, kept softmax). Left out: what rewards
and tokenizers take.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orbiter.train.engine.policy import DTYPES, Policy
from orbiter.train.engine.update import MICRO_BATCH_TOKENS

FLOAT32 = 4
"""Bytes of a master weight, a gradient, and each of AdamW's two moments."""
LOGIT_COPIES = 4
"""Rectangles [B V] in float32 that one draw holds: logits, mass, cumulative sum, scaled logits."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes, by what they are for."""

    resident: int
    """What the process holds already: libraries, weights, the frozen reference."""
    optimiser: int
    """AdamW's two moments of every trained weight."""
    gradient: int
    """Of every trained weight, while learning."""
    rollout: int
    """While sampling: packed weights, cache of keys and values, logits."""
    update: int
    """While learning, beside the gradients: activations, kept softmax, joined weights."""

    @property
    def total(self) -> int:
        """The peak: sampling and learning take turns."""
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


def memory_estimate(
    policy: Policy,
    *,
    prompts: int,
    n: int,
    prompt_tokens: int,
    new_tokens: int,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> MemoryEstimate:
    """Estimate the peak of steps with `n` answers to each of `prompts` prompts.

    `prompt_tokens` and `new_tokens` are the longest expected. Without `new_tokens` nothing is
    sampled, and the prompts' tokens are what is trained on, as in SFT.
    """
    dims = _Dimensions.of(policy)
    shared = policy.path == "fast" and new_tokens > 0
    prompts_run = prompts if shared else prompts * n
    body = prompts_run * prompt_tokens + prompts * n * new_tokens
    answers = prompts * n * new_tokens or body
    at_once = min(1.0, micro_batch_tokens / body)
    trained = sum(p.numel() for p in policy.named_trainable().values())
    return MemoryEstimate(
        resident=_resident(policy),
        optimiser=2 * FLOAT32 * trained,
        gradient=FLOAT32 * trained,
        rollout=dims.sampling(body, rows=prompts * n) if new_tokens else 0,
        update=dims.learning(at_once * body, at_once * answers, keys=prompt_tokens + new_tokens),
    )


class _Dimensions(NamedTuple):
    """What of an architecture the bytes depend on."""

    weights: int
    layers: int
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    width: int
    """Bytes of a number in the policy's arithmetic."""

    @classmethod
    def of(cls, policy: Policy) -> _Dimensions:
        """Read them; the families name a few of them differently, or leave them to a default."""
        config: Any = policy.model.config
        heads = config.num_attention_heads
        return cls(
            weights=sum(p.numel() for p in policy.model.parameters()),
            layers=config.num_hidden_layers,
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", heads),
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            width=DTYPES[policy.dtype].itemsize,
        )

    def sampling(self, cached: int, *, rows: int) -> int:
        """Packed weights, keys and values of the cached tokens, and a draw's rectangles."""
        cache = 2 * self.layers * self.kv_heads * self.head_dim * self.width
        logits = LOGIT_COPIES * FLOAT32 * self.vocabulary
        return int(self.weights * self.width + cached * cache + rows * logits)

    def learning(self, body: float, answers: float, *, keys: int) -> int:
        """Activations of the body's tokens, the answers' softmax, joined weights, the head's slope.

        A layer keeps of a token: two norms in float32 (input, scale, normalised) and cast; queries,
        keys, values, the softmax's row and the mix; gate, up, silu(gate) and their product.
        """
        norms = 2 * self.hidden * (3 * FLOAT32 + self.width)
        heads = self.width * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        layer = norms + heads + self.width * (self.heads * keys + 4 * self.inner)
        head = self.vocabulary * (answers * self.width + self.hidden * FLOAT32)
        return int(body * self.layers * layer + self.weights * self.width + head)


def _resident(policy: Policy) -> int:
    """Return what is taken already: on the accelerator, or by the process."""
    if policy.device.type == "cuda":
        return int(torch.cuda.memory_allocated(policy.device))
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        pages = int(statistics.read_text(encoding="ascii").split()[1])
        return pages * int(os.sysconf("SC_PAGE_SIZE"))
    return FLOAT32 * int(sum(p.numel() for p in policy.model.parameters()))
