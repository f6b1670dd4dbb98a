"""Three estimates of the divergence between policy and reference, from the sampled tokens.

With d = log pi_ref(y) - log pi(y) for a token y drawn from pi, the mean of each estimates
KL(pi || pi_ref) in nats per token. Schulman 2020, http://joschu.net/blog/kl-approx.html.
Not here: the exact divergence over the whole vocabulary, which needs both models' logits.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.rl.masked import only


def kl_k1(
    logprob: Float[Tensor, "B T"], ref_logprob: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Estimate the divergence without bias, with high variance and either sign.

        k1 = -d = log pi(y) - log pi_ref(y)

    The one to subtract from a reward (Ouyang et al. 2022, eq. 2, https://arxiv.org/abs/2203.02155).
    As a loss it is useless: the expectation of its gradient is zero whatever the reference.
    """
    return only(logprob, mask) - only(ref_logprob, mask)


def kl_k2(
    logprob: Float[Tensor, "B T"], ref_logprob: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Estimate the divergence with a little bias and low variance, never negative.

        k2 = d^2 / 2

    As a loss it has the divergence's own gradient on average, as long as y is drawn from pi.
    """
    # Its gradient is -d * grad log pi, which equals that of the KL in expectation under pi.
    return kl_k1(logprob, ref_logprob, mask).square() / 2


def kl_k3(
    logprob: Float[Tensor, "B T"], ref_logprob: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Estimate the divergence without bias, with low variance, never negative.

        k3 = exp(d) - 1 - d

    GRPO's penalty: Shao et al. 2024, eq. 4, https://arxiv.org/abs/2402.03300. verl clips d to
    [-20, 20] and the result to [-10, 10]; here nothing is clipped, so a diverged policy is visible
    in the metric.
    """
    # d is log pi_ref - log pi, the opposite sign of k1.
    difference = -kl_k1(logprob, ref_logprob, mask)
    # expm1, because exp(d) - 1 loses all digits of a small d.
    return torch.expm1(difference) - difference


KL_ESTIMATES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}
"""The estimates by name."""
