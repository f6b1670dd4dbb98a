"""RLOO's advantage: each response is compared with the mean of the others.

Ahmadian et al. 2024, section 3.3, https://arxiv.org/abs/2402.14740.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.rl.advantage import group_relative_advantage


def leave_one_out_advantage(
    reward: Float[Tensor, "P G"], *, valid: Bool[Tensor, "P G"] | None = None
) -> Float[Tensor, "P G"]:
    """Return each response's reward minus the mean reward of the others in its group.

        A_pg = r_pg - mean of r_ph over h != g  =  G / (G - 1) * (r_pg - mean_g r_p)

    Responses that are not `valid` count in no mean and get zero. A group whose rewards are all
    equal, or with a single valid response, gets exactly zero.

    Raises:
        DataError: a group has fewer than two responses.
    """
    valid = torch.ones_like(reward, dtype=torch.bool) if valid is None else valid
    count = valid.sum(dim=-1, keepdim=True).to(reward.dtype)
    factor = count / (count - 1).clamp(min=1)
    return factor * group_relative_advantage(reward, valid=valid, scale="none")
