"""What all losses of preferences take and return."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Answers(NamedTuple):
    """The log probabilities of N answers, summed over their tokens, in nats."""

    logprob: Float[Tensor, "N"]
    """Under the policy; has a gradient."""
    tokens: Int[Tensor, "N"]
    """Number of answer tokens."""
    ref_logprob: Float[Tensor, "N"]
    """Under the frozen reference; 0 where the method has none."""

    @property
    def mean_logprob(self) -> Float[Tensor, "N"]:
        """Log probability per token."""
        return self.logprob / self.tokens


class PairLoss(NamedTuple):
    """The loss of each pair, and the implicit rewards of its two answers."""

    loss: Float[Tensor, "N"]
    chosen_reward: Float[Tensor, "N"]
    """Without a gradient; the pair is ranked correctly if it is above the other."""
    rejected_reward: Float[Tensor, "N"]
