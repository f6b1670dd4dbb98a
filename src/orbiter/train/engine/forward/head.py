"""Compute log probabilities from hidden states without ever holding all logits in float32.

Only the states before trained tokens arrive here. Their logits are computed in chunks, and only the
softmax is kept for the backward pass, in the policy's dtype. The entropy is computed in the same
pass. Losses are computed elsewhere, from the log probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.arithmetic import Linear, packed_linear

CHUNK_ELEMENTS = 1 << 22
"""Logits computed at once: 16 MiB in float32, so that a chunk stays in the processor's cache."""

PACK_FROM = 64
"""Number of scored tokens from which packing the vocabulary's weight pays off in float32."""


class TokenScores(NamedTuple):
    """The model's scores of N tokens."""

    logprob: Float[Tensor, "N"]
    """log pi(token), in nats."""
    entropy: Float[Tensor, "N"]
    """Entropy of the distribution over the vocabulary at that position, in nats."""
    likeliest: Bool[Tensor, "N"]
    """Whether no other token had a higher probability."""


def token_scores(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    token_ids: Int[Tensor, "N"],
    *,
    temperature: float = 1.0,
) -> TokenScores:
    """Return log softmax(hidden W^T / temperature) at the tokens, and the softmax's entropy.

        d logprob / d z_j = [j = token] - p_j        d entropy / d z_j = -p_j (log p_j + entropy)

    The products run in `hidden`'s dtype, everything after them in float32 at least. Backward can
    run only once, because it overwrites the softmax that forward kept.
    """
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _TokenScores.apply
    return TokenScores(*apply(hidden, weight, token_ids, temperature))


def scores_of_logits(
    logits: Float[Tensor, "N V"], token_ids: Int[Tensor, "N"], *, temperature: float = 1.0
) -> TokenScores:
    """Return the same scores from a model's own logits, with plain autograd and more memory."""
    # At least float32: log-softmax in 16 bits loses the small probabilities that ratios compare.
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_softmax = torch.log_softmax(logits.to(wide) / temperature, dim=-1)
    entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
    logprob = log_softmax.gather(1, token_ids[:, None])[:, 0]
    return TokenScores(logprob, entropy, logprob.detach() >= log_softmax.detach().amax(dim=-1))


class _TokenScoresContext(torch.autograd.function.FunctionCtx):
    """The attributes of torch's autograd context that are used here."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]
    probability: Tensor
    """The softmax; not among the saved tensors, because backward overwrites it."""
    temperature: float


class _TokenScores(torch.autograd.Function):
    """The forward and backward pass of `token_scores`."""

    @staticmethod
    def forward(
        ctx: _TokenScoresContext,
        hidden: Tensor,
        weight: Tensor,
        token_ids: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score chunk by chunk; keep the softmax if a gradient will be needed."""
        # Cast once for all chunks; `backward` casts the weight's gradient back.
        narrow = weight.to(hidden.dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        wanted = any(ctx.needs_input_grad[:2])
        # Without gradients nothing is kept, so scoring under no_grad takes one chunk of memory.
        probability = hidden.new_empty(len(hidden) if wanted else 0, len(weight))
        logprob = hidden.new_empty(len(hidden), dtype=wide)
        entropy = torch.empty_like(logprob)
        likeliest = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        multiply = product_with(narrow, rows=len(hidden))
        for rows in chunks(len(hidden), len(weight)):
            logits = multiply(hidden[rows]).to(wide)
            if temperature != 1:
                logits /= temperature
            # Shifted by the largest logit, so that exp cannot overflow.
            largest = logits.amax(dim=-1)
            mass = torch.sub(logits, largest[:, None]).exp_()
            total = mass.sum(dim=-1)
            norm = largest + total.log()
            taken = logits.gather(1, token_ids[rows, None])[:, 0]
            # `>=`, not `==`: the token's logit equals the largest one exactly if it is likeliest.
            logprob[rows], likeliest[rows] = taken - norm, taken >= largest
            # H = logsumexp(z) - sum_v p_v z_v, without a second pass over the vocabulary.
            entropy[rows] = norm - torch.einsum("nv,nv->n", mass, logits) / total
            if wanted:
                # The mass is reused as the probability; a second [n V] tensor would double the
                # chunk's memory.
                torch.div(mass, total[:, None], out=mass)
                probability[rows] = mass
        ctx.save_for_backward(hidden, narrow, token_ids, entropy)
        ctx.probability = probability
        ctx.temperature = temperature
        # A comparison has no gradient.
        ctx.mark_non_differentiable(likeliest)
        return logprob, entropy, likeliest

    @staticmethod
    def backward(
        ctx: _TokenScoresContext, d_logprob: Tensor, d_entropy: Tensor, _: object
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Turn the kept softmax into the gradient of the logits, in place, then multiply."""
        hidden, narrow, token_ids, entropy = ctx.saved_tensors
        # The saved softmax is overwritten with the gradient of the logits: no second [N V]
        # tensor.
        d_logits: Tensor = ctx.probability
        # Without an entropy bonus its gradient is zero, and two thirds of the work can be skipped.
        with_entropy = bool(d_entropy.any())
        for rows in chunks(*d_logits.shape):
            part = d_logits[rows]
            slope = d_logprob[rows, None]
            if with_entropy:
                p = part.to(entropy.dtype)
                # xlogy is 0 where p is 0, while p * log(p) would be NaN.
                surprise = torch.special.xlogy(p, p) + p * entropy[rows, None]
                part.copy_(-slope * part - d_entropy[rows, None] * surprise)
            else:
                part.mul_(-slope.to(part.dtype))
            # The gradient is now -slope * p; the drawn token adds its one-hot part.
            part.scatter_add_(1, token_ids[rows, None], slope.to(part.dtype))
        # d z / d logits = 1 / temperature, by the chain rule.
        if ctx.temperature != 1:
            d_logits /= ctx.temperature
        d_hidden = d_logits @ narrow if ctx.needs_input_grad[0] else None
        # The master weight is float32, so its gradient must be too.
        d_weight = (d_logits.t() @ hidden).to(entropy.dtype) if ctx.needs_input_grad[1] else None
        return d_hidden, d_weight, None, None


def product_with(weight: Tensor, *, rows: int) -> Linear:
    """Return the product with the vocabulary's weight, for `rows` rows in chunks.

    In float32 on a CPU the weight is packed first, because a chunk has so few rows that torch's own
    product runs at half speed. In bfloat16 torch's product packs by itself.
    """
    if weight.dtype == torch.float32 and weight.device.type == "cpu" and rows >= PACK_FROM:
        return packed_linear(weight, None, weight.dtype)
    return lambda x: functional.linear(x, weight)


def chunks(rows: int, width: int) -> list[slice]:
    """Cut `rows` into slices of about `CHUNK_ELEMENTS` / `width` rows."""
    size = max(1, CHUNK_ELEMENTS // width)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
