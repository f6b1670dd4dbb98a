"""Direct preference optimisation, Rafailov et al. 2023, https://arxiv.org/abs/2305.18290."""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from orbiter.train.preference.methods.losses import Answers, PairLoss


def dpo_loss(
    chosen: Answers, rejected: Answers, *, beta: float, label_smoothing: float = 0.0
) -> PairLoss:
    """Return the negative log likelihood of the preferences under the implicit reward.

        r(y)  = beta (log pi(y | x) - log pi_ref(y | x))                    equation 5
        L     = -log sigmoid(r(y_w) - r(y_l))                               equation 7

    With label smoothing epsilon, the share of preferences expected to be the wrong way round
    (Mitchell 2023, "conservative DPO", https://ericmitchell.ai/cdpo.pdf):

        L     = -(1 - epsilon) log sigmoid(m) - epsilon log sigmoid(-m),   m = r(y_w) - r(y_l)
    """
    chosen_reward = beta * (chosen.logprob - chosen.ref_logprob)
    rejected_reward = beta * (rejected.logprob - rejected.ref_logprob)
    margin = chosen_reward - rejected_reward
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return PairLoss(loss, chosen_reward.detach(), rejected_reward.detach())
