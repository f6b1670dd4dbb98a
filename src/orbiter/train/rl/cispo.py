"""CISPO's policy loss: the clipped importance weight is a constant, so each token has a gradient.

MiniMax 2025, eq. 4 and 5, https://arxiv.org/abs/2506.13585.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.rl.kl import kl_k3
from orbiter.train.rl.loss import Aggregation, PolicyLoss, aggregate
from orbiter.train.rl.masked import masked_mean, only


def cispo_loss(
    logprob: Float[Tensor, "B T"],
    old_logprob: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
) -> PolicyLoss:
    """Weight each token's log probability by its clipped ratio, which is held constant.

        rho_t = exp(log pi(y_t) - log pi_old(y_t))
        L     = agg_t  -stop_gradient(clip(rho_t, 1 - clip_range, 1 + clip_range_high)) A_t log pi

    The paper sets no lower bound (clip_range near 1); verl has both, as here. The value of the loss
    has no meaning, only its gradient.
    """
    logprob, old_logprob = only(logprob, mask), only(old_logprob.detach(), mask)
    advantage = only(advantage.detach(), mask)
    rho = (logprob.detach() - old_logprob).exp()
    high = clip_range if clip_range_high is None else clip_range_high
    # The bounds are those of the ratio itself; there is no minimum with an unclipped term.
    weight = rho.clamp(1 - clip_range, 1 + high)
    per_token = -weight * advantage * logprob
    return PolicyLoss(
        # The sign of the advantage plays no role: unlike in PPO, the gradient is kept on both
        # sides.
        aggregate(per_token, mask, aggregation=aggregation, max_length=max_length),
        masked_mean((weight != rho).to(rho.dtype), mask),
        # kl_k3 estimates KL(first || second) from samples of its first argument, here the old
        # policy.
        masked_mean(kl_k3(old_logprob, logprob.detach(), mask), mask),
    )
