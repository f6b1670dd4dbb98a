"""Weights for episodes that another policy, or an earlier one, has sampled.

Here `old_logprob` is that of the policy that sampled: the log probabilities stored with the
episodes. The weights are constants of an update; they have no gradient.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.errors import ConfigError
from orbiter.train.rl.masked import masked_sum


def episode_log_ratio(
    logprob: Float[Tensor, "B T"],
    old_logprob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    episode: Int[Tensor, "B"],
    *,
    episodes: int,
) -> Float[Tensor, "E"]:
    """Return each episode's log probability under the current policy minus that under the sampler.

        log rho_e = sum over the sampled tokens t of e of  log pi(y_t) - log mu(y_t)

    Args:
        logprob: Log probabilities under the current policy pi.
        old_logprob: Log probabilities under the policy mu that sampled.
        mask: True on the sampled tokens.
        episode: The episode that each row belongs to; an episode may have several rows.
        episodes: Number of episodes.
    """
    # Masked before the sum, since entries outside the mask may hold anything.
    of_row = masked_sum(logprob.detach() - old_logprob, mask, dim=-1)
    return of_row.new_zeros(episodes).index_add_(0, episode, of_row)


def truncated_weight(log_ratio: Float[Tensor, "*axes"], *, limit: float) -> Float[Tensor, "*axes"]:
    """Return min(rho, limit): importance sampling whose variance is bounded.

    Ionides 2008, "Truncated Importance Sampling", https://doi.org/10.1198/106186008X320456. An
    infinite limit gives the unbiased estimate. For ratios of single tokens this is the TIS of
    recent RL systems, such as Yao et al. 2025, https://fengyao.notion.site/off-policy-rl.
    """
    if not limit > 0:
        raise ConfigError(f"limit must be above 0, got {limit}")
    # exp may overflow to infinity, which the clamp turns into the limit.
    return log_ratio.exp().clamp(max=limit)


def topr_weight(log_ratio: Float[Tensor, "E"], advantage: Float[Tensor, "E"]) -> Float[Tensor, "E"]:
    """Return the weight of each episode in tapered off-policy REINFORCE.

        1             if the advantage is not negative: imitate it, however unlikely it is now
        min(rho, 1)   if it is negative: push away only as far as the policy still does it

    Le Roux et al. 2025, eq. 6 with the bounds of section 3.2, https://arxiv.org/abs/2503.14286.
    """
    return torch.where(advantage < 0, log_ratio.exp().clamp(max=1.0), torch.ones_like(log_ratio))


def awr_weight(
    advantage: Float[Tensor, "E"], *, temperature: float, limit: float
) -> Float[Tensor, "E"]:
    """Return min(exp(A / temperature), limit): the weight of advantage-weighted regression.

    Peng et al. 2019, eq. 10 and section 5, https://arxiv.org/abs/1910.00177, whose temperature is
    beta and whose limit is 20.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, got {temperature}")
    return (advantage / temperature).exp().clamp(max=limit)


def effective_sample_size(log_weight: Float[Tensor, "E"]) -> Float[Tensor, ""]:
    """Return the number of episodes of the current policy that the weighted ones are worth.

        (sum_e w_e)^2 / sum_e w_e^2

    Kong 1992. It is E for equal weights and 1 if one episode has all the weight. Computed from
    logarithms, so no ratio is too large or too small.
    """
    # logsumexp of doubled logarithms is the sum of squares.
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()
