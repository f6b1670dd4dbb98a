"""SAPO's policy loss, which replaces the clip by a smooth gate.

Gao et al. 2025, https://arxiv.org/abs/2511.20347.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.rl.kl import kl_k3
from orbiter.train.rl.loss import Aggregation, PolicyLoss, aggregate
from orbiter.train.rl.masked import masked_mean, only


def sapo_loss(
    logprob: Float[Tensor, "B T"],
    old_logprob: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    tau_positive: float,
    tau_negative: float,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
) -> PolicyLoss:
    """Weight each token's advantage by a gate of its ratio that falls off smoothly around 1.

        rho_t = exp(log pi(y_t) - log pi_old(y_t))
        f(x)  = 4 / tau * sigmoid(tau (x - 1)),   tau = tau_positive if A_t > 0 else tau_negative
        L     = agg_t  -f(rho_t) A_t

    At rho = 1 the gate has slope 1, as the plain ratio has. Nothing is clipped: `clip_fraction` is
    0. verl always aggregates by sequence and clips the log ratio to [-20, 20], unlike this.
    """
    logprob, old_logprob = only(logprob, mask), only(old_logprob.detach(), mask)
    advantage = only(advantage.detach(), mask)
    rho = (logprob - old_logprob).exp()
    positive, negative = rho.new_tensor(tau_positive), rho.new_tensor(tau_negative)
    tau = torch.where(advantage > 0, positive, negative)
    # 4 / tau makes the slope 1 at rho = 1: the sigmoid's own slope there is tau / 4.
    per_token = -(4 / tau) * torch.sigmoid(tau * (rho - 1)) * advantage
    return PolicyLoss(
        aggregate(per_token, mask, aggregation=aggregation, max_length=max_length),
        rho.new_zeros(()),
        masked_mean(kl_k3(old_logprob, logprob.detach(), mask), mask),
    )
