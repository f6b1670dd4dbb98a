"""What is minimised: the clipped surrogate, the clipped value loss, and the entropy beside them.

Left out: the forward pass that gives the log-probabilities, and the optimiser.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.errors import ConfigError
from orbiter.train.rl.kl import kl_k3
from orbiter.train.rl.masked import masked_mean, masked_sum, only

Aggregation = Literal["token", "sequence", "constant"]
"""How per-token losses become one number; see `aggregate`."""


class PolicyLoss(NamedTuple):
    """The policy's loss and what one wants to know about the step it asks for."""

    loss: Tensor
    """Scalar to minimise. Near 0 on-policy by construction; its gradient is what counts."""
    clip_fraction: Tensor
    """Share of trained tokens where the clip was binding, in [0, 1]."""
    approx_kl: Tensor
    """Mean k3 estimate of KL(old || new), in nats per token; never negative."""


class ValueLoss(NamedTuple):
    """The value function's loss, and how often the clip was active."""

    loss: Tensor
    """Scalar to minimise: half the mean squared error, in squared units of reward."""
    clip_fraction: Tensor
    """Share of trained tokens where the clip was binding, in [0, 1]."""


def clipped_surrogate(
    logprob: Float[Tensor, "B T"],
    old_logprob: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
    ratio: Literal["token", "sequence"] = "token",
) -> PolicyLoss:
    """Return PPO's clipped policy loss, which gives no gain for ratios outside the clip range.

        rho_t = exp(log pi(y_t) - log pi_old(y_t))
        L     = agg_t  -min(rho_t A_t, clip(rho_t, 1 - clip_range, 1 + clip_range_high) A_t)

    Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347. A higher upper bound is DAPO's
    "clip higher", Yu et al. 2025, eq. 10, https://arxiv.org/abs/2503.14476. verl adds a third
    bound for negative advantages (dual clip) that is not here.

    Args:
        logprob: Log probabilities under the policy in training, with a gradient.
        old_logprob: Those under the policy that sampled; constants.
        advantage: Aligned with the tokens; a constant.
        mask: True on the tokens to train on.
        clip_range: Ratios below 1 - clip_range gain nothing.
        clip_range_high: Nor do ratios above 1 + clip_range_high; None means clip_range.
        aggregation: See `aggregate`.
        max_length: See `aggregate`.
        ratio: "sequence" gives every token the geometric mean of its row's ratios: GSPO, Zheng et
            al. 2025, eq. 7 and 13, https://arxiv.org/abs/2507.18071.
    """
    logprob, old_logprob = only(logprob, mask), only(old_logprob.detach(), mask)
    advantage = only(advantage.detach(), mask)
    log_ratio = logprob - old_logprob
    if ratio == "sequence":
        # Value of the mean, gradient of the token's own logprob: GSPO-token's stop-gradient.
        # GSPO's length-normalised ratio: the mean of the logs is the log of the geometric mean.
        mean = masked_mean(log_ratio.detach(), mask, dim=-1).unsqueeze(-1)
        log_ratio = only(logprob - logprob.detach() + mean, mask)
    rho = log_ratio.exp()
    high = clip_range if clip_range_high is None else clip_range_high
    free, clipped = rho * advantage, rho.clamp(1 - clip_range, 1 + high) * advantage
    # The minimum is a lower bound of the gain: clipping never makes a step look better.
    per_token = -torch.minimum(free, clipped)
    return PolicyLoss(
        aggregate(per_token, mask, aggregation=aggregation, max_length=max_length),
        # Strictly smaller: at equality the clip changes neither the loss nor its gradient.
        masked_mean((clipped < free).to(free.dtype), mask),
        masked_mean(kl_k3(old_logprob, logprob.detach(), mask), mask),
    )


def clipped_value_loss(
    value: Float[Tensor, "B T"],
    old_value: Float[Tensor, "B T"],
    return_: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_range: float | None,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
) -> ValueLoss:
    """Return the value loss; moving a value further than `clip_range` in one update gains nothing.

        V_clip = clip(V, V_old - clip_range, V_old + clip_range)
        L      = agg_t  max((V - R)^2, (V_clip - R)^2) / 2

    The public PPO implementations' rule (no paper states it), see point 9 of Huang et al. 2022,
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/. None does not clip.
    """
    # Masked before any arithmetic, so that NaN in the padding reaches neither loss nor gradient.
    value, old_value = only(value, mask), only(old_value.detach(), mask)
    return_ = only(return_.detach(), mask)
    free = (value - return_).square()
    if clip_range is None:
        clipped = free
    else:
        moved = torch.clamp(value, old_value - clip_range, old_value + clip_range)
        clipped = (moved - return_).square()
    # The maximum is an upper bound of the error: clipping never makes it look smaller.
    per_token = torch.maximum(free, clipped) / 2
    return ValueLoss(
        aggregate(per_token, mask, aggregation=aggregation, max_length=max_length),
        masked_mean((clipped > free).to(free.dtype), mask),
    )


def aggregate(
    per_token: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    aggregation: Aggregation,
    max_length: int | None = None,
) -> Float[Tensor, ""]:
    """Reduce per-token losses to one number.

        "token"     sum over all tokens / number of trained tokens     DAPO, eq. 8; verl's default
        "sequence"  mean over rows of the mean over the row's tokens   GRPO, eq. 3
        "constant"  sum over all tokens / (rows * max_length)          Dr. GRPO, section 3

    "sequence" gives a token of a short answer more weight; with "constant" the weight does not
    depend on length. Rows without a trained token are left out of all three.

    Args:
        per_token: Losses; entries outside the mask are ignored.
        mask: True on the tokens to train on.
        aggregation: Which of the three reductions.
        max_length: The divisor of "constant", in tokens; the same for every batch of a run.
    """
    if aggregation == "token":
        return masked_mean(per_token, mask)
    trained = mask.any(dim=-1)
    if aggregation == "sequence":
        # Empty rows are left out of the outer mean; their inner mean would count as 0.
        return masked_mean(masked_mean(per_token, mask, dim=-1), trained)
    if max_length is None or max_length < 1:
        raise ConfigError(f'aggregation="constant" needs max_length >= 1, got {max_length}')
    return masked_sum(per_token, mask) / (trained.sum().clamp(min=1) * max_length)


def entropy(logits: Float[Tensor, "*axes V"]) -> Float[Tensor, "*axes"]:
    """Return the entropy of each distribution in nats: 0 if certain, log V if uniform.

    H = -sum_v p_v log p_v = logsumexp(z) - sum_v p_v z_v
    """
    finite = logits.clamp(min=torch.finfo(logits.dtype).min)  # 0 * -inf would be NaN
    return torch.logsumexp(finite, dim=-1) - (finite.softmax(dim=-1) * finite).sum(dim=-1)
