"""Odds ratio preference optimisation, Hong et al. 2024, https://arxiv.org/abs/2403.07691."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from orbiter.train.preference.methods.losses import Answers, PairLoss

ALMOST_CERTAIN = -1e-6
"""Largest log probability per token whose odds are computed; the odds of 0 are infinite."""


def orpo_loss(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return the likelihood loss of the better answer plus beta times the loss of the odds ratio.

        log P(y)  = 1/|y| sum_t log pi(y_t)                                 equation 3
        odds(y)   = P(y) / (1 - P(y))                                       equation 4
        L         = -log P(y_w) - beta log sigmoid(log odds(y_w) / odds(y_l))     equations 6, 7

    beta is the paper's lambda. There is no reference. The first term is a mean over the pairs;
    TRL's is a mean over all tokens of the better texts, prompts included. The implicit rewards are
    beta times log P.
    """
    # Per token, as in equation 3; the whole answer's probability would be 0 in float32.
    better, worse = chosen.mean_logprob, rejected.mean_logprob
    # log odds = log P - log(1 - P), for both sides.
    log_odds = (better - worse) - (_log_complement(better) - _log_complement(worse))
    loss = -better - beta * logsigmoid(log_odds)
    return PairLoss(loss, beta * better.detach(), beta * worse.detach())


def _log_complement(logprob: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return log(1 - exp(logprob)) without loss of precision."""
    # At probability 1 the complement is 0, whose logarithm has no finite gradient.
    logprob = logprob.clamp(max=ALMOST_CERTAIN)
    # Each form cancels on the other side of one half.
    small, large = torch.log1p(-logprob.exp()), (-torch.expm1(logprob)).log()
    return torch.where(logprob < -math.log(2), small, large)
