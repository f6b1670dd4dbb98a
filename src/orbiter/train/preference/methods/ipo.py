"""Identity preference optimisation, Azar et al. 2023, https://arxiv.org/abs/2310.12036."""

from __future__ import annotations

from orbiter.train.preference.methods.losses import Answers, PairLoss


def ipo_loss(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return the squared distance of each pair's margin from the one that beta asks for.

        h = log pi(y_w) / pi_ref(y_w) / |y_w| - log pi(y_l) / pi_ref(y_l) / |y_l|
        L = (h - 1 / (2 beta))^2                                             equation 17, tau = beta

    Unlike DPO's, the loss does not reward a margin without bound. The paper sums over the tokens;
    the mean per token is what its authors use, by TRL's account, and keeps beta comparable over
    lengths. The implicit rewards are beta times the two terms of h.
    """
    chosen_ratio = (chosen.logprob - chosen.ref_logprob) / chosen.tokens
    rejected_ratio = (rejected.logprob - rejected.ref_logprob) / rejected.tokens
    loss = (chosen_ratio - rejected_ratio - 1 / (2 * beta)).square()
    return PairLoss(loss, beta * chosen_ratio.detach(), beta * rejected_ratio.detach())
