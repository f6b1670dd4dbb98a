"""Kahneman-Tversky optimisation, Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.preference.methods.losses import Answers


class VerdictLoss(NamedTuple):
    """The loss of each answer, and its implicit reward."""

    loss: Float[Tensor, "N"]
    reward: Float[Tensor, "N"]
    """Relative to the reference point, without a gradient: above 0 means preferred to it."""


def kto_loss(
    answers: Answers,
    desirable: Bool[Tensor, "N"],
    kl: Float[Tensor, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> VerdictLoss:
    """Return the loss of single answers that are good or bad; they need no counterpart.

        r(y) = log pi(y | x) - log pi_ref(y | x)
        L    = lambda_D (1 - sigmoid(beta (r - z)))   of a desirable answer      section 4.1
               lambda_U (1 - sigmoid(beta (z - r)))   of an undesirable one

    Args:
        answers: The answers.
        desirable: Which of them are good.
        kl: The reference point z, an estimate of KL(pi || pi_ref); it has no gradient, and is
            raised to 0 if it is negative.
        beta: How soon the value of a gain or loss saturates.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
    """
    # Detached: z only shifts the reference point (section 4.1).
    advantage = answers.logprob - answers.ref_logprob - kl.detach().clamp(min=0)
    gain = torch.where(desirable, advantage, -advantage)
    weight = torch.where(
        desirable, advantage.new_tensor(desirable_weight), advantage.new_tensor(undesirable_weight)
    )
    return VerdictLoss(weight * (1 - torch.sigmoid(beta * gain)), beta * advantage.detach())


def kl_estimate(mismatched: Answers) -> Float[Tensor, ""]:
    """Estimate KL(pi || pi_ref) from answers to other prompts than their own (section 4.1).

    It is the mean of log pi(y' | x) - log pi_ref(y' | x); `kto_loss` raises it to 0.
    """
    return (mismatched.logprob - mismatched.ref_logprob).mean()
