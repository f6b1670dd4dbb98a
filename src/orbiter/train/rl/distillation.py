"""The divergence of a student from its teacher over the whole vocabulary, and its gradient.

Agarwal et al. 2023 (GKD), eq. 1, https://arxiv.org/abs/2306.13649. With sampled tokens only, the
estimate of the reverse KL is `kl.kl_k1`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def generalized_jsd(
    logprob: Float[Tensor, "*axes V"], teacher_logprob: Float[Tensor, "*axes V"], *, beta: float
) -> Float[Tensor, "*axes"]:
    """Return the generalised Jensen-Shannon divergence of each pair of distributions, in nats.

        m    = beta q + (1 - beta) p            p of the student, q of the teacher
        D    = beta KL(q || m) + (1 - beta) KL(p || m)      0 < beta < 1
        D(0) = KL(q || p), the forward KL       D(1) = KL(p || q), the reverse KL

    The formula itself is 0 at both ends; divided by beta or 1 - beta it tends to the two KLs, which
    are used there instead, as in TRL. Never negative up to rounding.
    """
    if beta == 0:
        return _kl(teacher_logprob, logprob)
    if beta == 1:
        return _kl(logprob, teacher_logprob)
    mixture = _log_mixture(logprob, teacher_logprob, beta)
    return beta * _kl(teacher_logprob, mixture) + (1 - beta) * _kl(logprob, mixture)


def generalized_jsd_slope(
    logprob: Float[Tensor, "*axes V"], teacher_logprob: Float[Tensor, "*axes V"], *, beta: float
) -> Float[Tensor, "*axes V"]:
    """Return the derivative of `generalized_jsd` by the student's logits.

        dD / dz_v = p_v (u_v - sum_w p_w u_w),   u = (1 - beta) log(p / m)      0 < beta < 1
        beta = 0:   p_v - q_v                    beta = 1:   u = log(p / q)

    Its sum over the vocabulary is zero.
    """
    probability = logprob.exp()
    if beta == 0:
        return probability - teacher_logprob.exp()
    if beta == 1:
        weighted = _times_log_ratio(probability, logprob, teacher_logprob)
    else:
        mixture = _log_mixture(logprob, teacher_logprob, beta)
        weighted = (1 - beta) * _times_log_ratio(probability, logprob, mixture)
    # The second term keeps the sum over the vocabulary at zero, as softmax requires.
    return weighted - probability * weighted.sum(dim=-1, keepdim=True)


def _log_mixture(logprob: Tensor, teacher_logprob: Tensor, beta: float) -> Tensor:
    """Return log(beta q + (1 - beta) p) without leaving the logs."""
    return torch.logaddexp(logprob + math.log1p(-beta), teacher_logprob + math.log(beta))


def _kl(logprob: Tensor, other: Tensor) -> Tensor:
    """Return KL(p || other), summed over the vocabulary."""
    return _times_log_ratio(logprob.exp(), logprob, other).sum(dim=-1)


def _times_log_ratio(probability: Tensor, logprob: Tensor, other: Tensor) -> Tensor:
    """Return p log(p / other), which is 0 where p is 0."""
    # Where p is 0 both logs may be -inf, and their difference NaN.
    return torch.where(probability > 0, probability * (logprob - other), 0.0)
