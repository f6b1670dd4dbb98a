"""Compare a student's distribution with a teacher's over the whole vocabulary, chunk by chunk.

No tensor of all logits exists: a chunk of tokens goes through both vocabulary heads and is reduced
to one number per token. The backward pass computes each chunk's logits again, so that memory does
not grow with the number of tokens. The divergence itself is in `rl/distillation.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orbiter.train.engine.forward.head import chunks, product_with
from orbiter.train.errors import TrainingError
from orbiter.train.rl.distillation import generalized_jsd, generalized_jsd_slope


class HeadInput(NamedTuple):
    """What a vocabulary head makes the logits of N tokens from."""

    hidden: Float[Tensor, "N H"]
    """The states before the tokens; the logits themselves where `weight` is None."""
    weight: Float[Tensor, "V H"] | None
    """The head; None for a model whose logits are not a plain product."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have a logit."""
        return self.hidden.shape[-1] if self.weight is None else len(self.weight)


class TaughtScores(NamedTuple):
    """The student's scores of N tokens, in nats."""

    logprob: Float[Tensor, "N"]
    entropy: Float[Tensor, "N"]
    divergence: Float[Tensor, "N"]
    """Of the student's distribution from the teacher's at that position."""


def taught_scores(
    student: HeadInput,
    teacher: HeadInput,
    token_ids: Int[Tensor, "N"],
    *,
    temperature: float,
    beta: float,
) -> TaughtScores:
    """Return log probability, entropy and `generalized_jsd` of tokens, with the student's gradient.

    The logits of both are divided by `temperature`. Models with the same tokenizer may pad their
    vocabularies to different sizes; the distributions are over the tokens that both have.

    Raises:
        TrainingError: a token is beyond the vocabulary of one of them.
    """
    common = min(student.vocabulary, teacher.vocabulary)
    if len(token_ids) and int(token_ids.max()) >= common:
        raise TrainingError(
            f"token {int(token_ids.max())} has no logit in one of the models: the student's "
            f"vocabulary has {student.vocabulary} entries, the teacher's {teacher.vocabulary}"
        )
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _TaughtScores.apply
    return TaughtScores(*apply(*student, _Given(teacher, token_ids, temperature, beta, common)))


class _Given(NamedTuple):
    """The constants of a comparison."""

    teacher: HeadInput
    token_ids: Tensor
    temperature: float
    beta: float
    vocabulary: int
    """Number of tokens that both models have."""

    def distribution(self, of: HeadInput) -> Callable[[slice], Tensor]:
        """Return a function from rows to their log probabilities over the common vocabulary."""
        hidden, weight = of
        wide = torch.promote_types(hidden.dtype, torch.float32)
        multiply = None
        if weight is not None:
            narrow = weight[: self.vocabulary].to(hidden.dtype)
            multiply = product_with(narrow, rows=len(hidden))

        def at(rows: slice) -> Tensor:
            part = hidden[rows]
            logits = part[:, : self.vocabulary] if multiply is None else multiply(part)
            return torch.log_softmax(logits.to(wide) / self.temperature, dim=-1)

        return at


class _TaughtScoresContext(torch.autograd.function.FunctionCtx):
    """The attributes of torch's autograd context that are used here."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]
    given: _Given


class _TaughtScores(torch.autograd.Function):
    """The forward and backward pass of `taught_scores`."""

    @staticmethod
    def forward(
        ctx: _TaughtScoresContext, hidden: Tensor, weight: Tensor | None, given: _Given
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reduce each chunk to three numbers per token; keep only the inputs."""
        ctx.save_for_backward(*([hidden] if weight is None else [hidden, weight]))
        ctx.given = given
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprob = hidden.new_empty(len(hidden), dtype=dtype)
        entropy, divergence = torch.empty_like(logprob), torch.empty_like(logprob)
        student_at = given.distribution(HeadInput(hidden, weight))
        teacher_at = given.distribution(given.teacher)
        for rows in chunks(len(hidden), given.vocabulary):
            student, teacher = student_at(rows), teacher_at(rows)
            logprob[rows] = student.gather(1, given.token_ids[rows, None])[:, 0]
            entropy[rows] = -torch.einsum("nv,nv->n", student.exp(), student)
            divergence[rows] = generalized_jsd(student, teacher, beta=given.beta)
        return logprob, entropy, divergence

    @staticmethod
    def backward(
        ctx: _TaughtScoresContext, d_logprob: Tensor, d_entropy: Tensor, d_divergence: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Compute each chunk's logits once more, and pass their gradient on."""
        hidden, *further = ctx.saved_tensors
        weight, given = further[0] if further else None, ctx.given
        slope = TaughtScores(d_logprob, d_entropy, d_divergence)
        student_at = given.distribution(HeadInput(hidden, weight))
        teacher_at = given.distribution(given.teacher)
        d_hidden = torch.zeros_like(hidden)
        d_weight = None
        if weight is not None and ctx.needs_input_grad[1]:
            # In float32, since the chunks are summed and the master weight is float32.
            d_weight = torch.zeros_like(weight, dtype=d_divergence.dtype)
        for rows in chunks(len(hidden), given.vocabulary):
            d_logits = _slope_of_logits(slope, student_at(rows), teacher_at(rows), given, rows)
            d_logits = d_logits.to(hidden.dtype)
            if weight is None:
                d_hidden[rows, : given.vocabulary] = d_logits
                continue
            d_hidden[rows] = d_logits @ weight[: given.vocabulary].to(hidden.dtype)
            if d_weight is not None:
                d_weight[: given.vocabulary] += (d_logits.t() @ hidden[rows]).to(d_weight.dtype)
        return d_hidden, d_weight, None


def _slope_of_logits(
    slope: TaughtScores, student: Tensor, teacher: Tensor, given: _Given, rows: slice
) -> Tensor:
    """Return the derivative by the student's logits of a chunk, given that by its scores."""
    by_divergence = generalized_jsd_slope(student, teacher, beta=given.beta)
    made = slope.divergence[rows, None] * by_divergence
    probability = student.exp()
    # Without a reward or an entropy bonus their derivatives are zero.
    if bool(slope.logprob[rows].any()):
        made -= slope.logprob[rows, None] * probability
        made.scatter_add_(1, given.token_ids[rows, None], slope.logprob[rows, None])
    if bool(slope.entropy[rows].any()):
        # -p (log p + H), and H is minus the mean of log p.
        mean = torch.einsum("nv,nv->n", probability, student)
        made -= slope.entropy[rows, None] * probability * (student - mean[:, None])
    # The logits were divided by the temperature, so their derivative is too.
    return made.div_(given.temperature)
