"""Credit assignment: how much better than expected an answer, or each of its tokens, was.

Not here: rewards, which the user defines, and the losses that use the advantages.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.errors import DataError
from orbiter.train.rl.masked import all_equal, masked_mean, masked_var, only


def group_relative_advantage(
    reward: Float[Tensor, "P G"],
    *,
    valid: Bool[Tensor, "P G"] | None = None,
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-6,
) -> Float[Tensor, "P G"]:
    """Return how much better each response did than the others of its group: GRPO's advantage.

        A_pg = (r_pg - mean_g r_p) / (std_g r_p + eps)      scale="std"
        A_pg =  r_pg - mean_g r_p                           scale="none"

    Shao et al. 2024, section 4.1.2, https://arxiv.org/abs/2402.03300, with the sample standard
    deviation as verl takes it (the paper does not say); without the division it is Dr. GRPO, Liu
    et al. 2025, section 3, https://arxiv.org/abs/2503.20783. A group whose rewards are all equal
    gets exactly zero: it carries no signal.

    Args:
        reward: One number a response, in groups that answer the same prompt.
        valid: Responses that have a reward. The others enter no mean and get zero.
        scale: Whether to divide by the group's standard deviation.
        eps: Keeps the advantages of groups with almost equal rewards small.

    Raises:
        DataError: a group has fewer than two responses.
    """
    if reward.shape[-1] < 2:
        raise DataError(f"a group needs at least 2 responses to compare, got {reward.shape[-1]}")
    valid = torch.ones_like(reward, dtype=torch.bool) if valid is None else valid
    # The group's mean is the baseline: no value function is needed.
    # The baseline includes the response itself, as in the paper; RLOO leaves it out.
    advantage = reward - masked_mean(reward, valid, dim=-1).unsqueeze(-1)
    if scale == "std":
        advantage = advantage / (masked_var(reward, valid, dim=-1).sqrt().unsqueeze(-1) + eps)
    # In float32 the mean of fifteen 1.96s is not 1.96, and dividing by eps makes that 0.3.
    return only(advantage, valid & ~all_equal(reward, valid).unsqueeze(-1))


def token_reward(
    score: Float[Tensor, "B"],
    mask: Bool[Tensor, "B T"],
    *,
    kl: Float[Tensor, "B T"] | None = None,
    kl_coef: float = 0.0,
) -> Float[Tensor, "B T"]:
    """Turn one score per response into token rewards: the score on the last, a KL penalty on each.

        r_t = score [t is the last trained token] - kl_coef * kl_t

    Ouyang et al. 2022, eq. 2, https://arxiv.org/abs/2203.02155, with `kl_k1` as the penalty. A
    row without a trained token gets zeros.
    """
    # The last True is the only one with no True after it.
    # flip and cumsum count the True entries from the right, the entry itself included.
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    reward = last * score.unsqueeze(-1)
    return reward if kl is None else reward - kl_coef * only(kl, mask)


class Gae(NamedTuple):
    """The advantage and the return of each token; zero where not trained."""

    advantage: Tensor
    """[B, T], in units of reward."""
    return_: Tensor
    """[B, T], the target of the value function: advantage plus old value."""


def gae(
    reward: Float[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
) -> Gae:
    """Generalised advantage estimation over the trained tokens of each row.

        delta_t = r_t + gamma * V_t+1 - V_t
        A_t     = delta_t + gamma * lambda * A_t+1
        R_t     = A_t + V_t

    Schulman et al. 2015, eq. 16, https://arxiv.org/abs/1506.02438. V_t is the value before token
    t is chosen; t + 1 is the next *trained* token, so a tool's answer in between is skipped, reward
    and value alike. After the last one, V and A are 0: a truncated response counts as finished. Not
    whitened (verl whitens in the same function): see `whiten`.
    """
    reward, value = only(reward, mask), only(value.detach(), mask)
    # Zero after the last token, so nothing is bootstrapped from a state that was never reached.
    next_value = next_advantage = torch.zeros_like(value[:, 0])
    advantage = torch.zeros_like(value)
    for t in reversed(range(value.shape[1])):
        delta = reward[:, t] + gamma * next_value - value[:, t]
        credit = delta + gamma * gae_lambda * next_advantage
        # Skip tokens that are not trained: the recursion continues from the next trained one.
        trained = mask[:, t]
        advantage[:, t] = only(credit, trained)
        next_advantage = torch.where(trained, credit, next_advantage)
        # The value of a token that is not trained was never fitted, so it must not be used
        # either.
        next_value = torch.where(trained, value[:, t], next_value)
    return Gae(advantage, only(advantage + value, mask))


def whiten(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, eps: float = 1e-8
) -> Float[Tensor, "B T"]:
    """Shift and scale the trained entries of the whole batch to mean 0 and variance 1.

        y = (x - mean x) / sqrt(var x + eps)

    with the sample variance, as verl and TRL do. Entries that are all equal become 0.
    """
    x = only(x, mask)
    centred = x - masked_mean(x, mask)
    # eps is inside the root, as in verl.
    return only(centred * (masked_var(x, mask) + eps).rsqrt(), mask)


def explained_variance(
    value: Float[Tensor, "B T"], return_: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Return the share of the returns' variance that the value function predicts.

        1 - var(R - V) / var(R)

    1 is a perfect prediction, 0 as good as a constant, negative worse than a constant. If the
    returns do not vary, the result is 0.
    """
    total = masked_var(return_, mask)
    unexplained = masked_var(return_ - value, mask)
    # The clamp avoids 0 / 0 in the branch that `where` discards.
    return torch.where(total > 0, 1 - unexplained / total.clamp(min=1e-30), 0.0)
