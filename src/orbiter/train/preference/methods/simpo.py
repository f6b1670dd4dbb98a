"""Simple preference optimisation, Meng et al. 2024, https://arxiv.org/abs/2405.14734."""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from orbiter.train.preference.methods.losses import Answers, PairLoss


def simpo_loss(chosen: Answers, rejected: Answers, *, beta: float, gamma: float) -> PairLoss:
    """Return the loss of ranking by likelihood per token, with a margin and without a reference.

    r(y) = beta / |y| sum_t log pi(y_t)                                 equation 4
    L    = -log sigmoid(r(y_w) - r(y_l) - gamma)                        equation 6
    """
    better, worse = beta * chosen.mean_logprob, beta * rejected.mean_logprob
    return PairLoss(-logsigmoid(better - worse - gamma), better.detach(), worse.detach())
