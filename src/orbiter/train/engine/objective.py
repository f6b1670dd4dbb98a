"""What an update minimises: reinforcement (`PolicyObjective`) or imitation (`ImitationObjective`).

They only put the functions of `rl/` together, by the weights in their fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.update import Part, Scored
from orbiter.train.errors import StateError
from orbiter.train.rl.kl import KL_ESTIMATES
from orbiter.train.rl.loss import (
    Aggregation,
    PolicyLoss,
    clipped_surrogate,
    clipped_value_loss,
)
from orbiter.train.rl.masked import masked_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """Clipped surrogate + kl_coef KL(policy || reference) + vf_coef value loss - ent_coef entropy.

    GRPO and PPO alike: they differ in where the advantage comes from, and in the value term. The
    surrogate is aggregated as asked, the others are means over tokens.
    """

    clip_range: float = 0.2
    """PPO's epsilon below 1, and above it unless `clip_range_high` says otherwise."""
    clip_range_high: float | None = None
    """Epsilon above 1 (DAPO's clip-higher)."""
    aggregation: Aggregation = "token"
    """How per-token losses become one number; see `rl.loss.aggregate`."""
    max_length: int | None = None
    """Tokens; the constant of the "constant" aggregation."""
    surrogate: Callable[..., PolicyLoss] | None = None
    """Another policy loss in place of `clipped_surrogate`, called with both log probabilities,
    advantage, mask, `aggregation` and `max_length`."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each token, or of the whole sequence (GSPO)."""
    kl_coef: float = 0.0
    """Weight of the KL estimate against `ref_logprob`."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Which estimate; see `rl.kl`."""
    vf_coef: float = 0.0
    """Weight of the value loss; 0 leaves the value function alone."""
    clip_range_value: float | None = None
    """How far a value may leave its old one before it earns nothing."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of this part of a batch, and what one wants to see of it."""
        policy = self._policy_loss(scored, batch)
        share = part.tokens if self.aggregation == "token" else part.rows
        beside = self._beside(scored, batch)
        weight = {"entropy": -self.ent_coef, "kl": self.kl_coef, "vf_loss": self.vf_coef}
        loss = policy.loss * share
        for name, term in beside.items():
            if weight[name]:
                loss = loss + weight[name] * term * part.tokens
        return loss, {
            "pg_loss": policy.loss,
            "clip_fraction": policy.clip_fraction,
            "approx_kl": policy.approx_kl,
            **beside,
        }

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """A row without advantage moves nothing, unless another term is on."""
        if self.ent_coef or self.vf_coef or self.kl_coef:
            return torch.zeros_like(batch.length, dtype=torch.bool)
        return (_needed(batch.advantage, "advantage") == 0).all(dim=-1)

    def _policy_loss(self, scored: Scored, batch: Batch) -> PolicyLoss:
        """Return the surrogate of the policy's step."""
        surrogate = self.surrogate or partial(
            clipped_surrogate,
            clip_range=self.clip_range,
            clip_range_high=self.clip_range_high,
            ratio=self.ratio,
        )
        return surrogate(
            scored.logprob,
            scored.logprob if batch.old_logprob is None else batch.old_logprob,
            _needed(batch.advantage, "advantage"),
            batch.mask,
            aggregation=self.aggregation,
            max_length=self.max_length,
        )

    def _beside(self, scored: Scored, batch: Batch) -> dict[str, Tensor]:
        """Return the means over tokens of what may stand beside the surrogate."""
        terms = {"entropy": masked_mean(scored.entropy, batch.mask)}
        if batch.ref_logprob is not None:
            estimate = KL_ESTIMATES[self.kl_estimator]
            kl = estimate(scored.logprob, batch.ref_logprob, batch.mask)
            terms["kl"] = masked_mean(kl, batch.mask)
        if self.vf_coef:
            terms["vf_loss"] = self._value_loss(scored, batch)
        return terms

    def _value_loss(self, scored: Scored, batch: Batch) -> Tensor:
        """Score the value head against the returns."""
        return clipped_value_loss(
            _needed(scored.value, "value"),
            _needed(batch.old_value, "old_value"),
            _needed(batch.return_, "return_"),
            batch.mask,
            clip_range=self.clip_range_value,
        ).loss


@dataclass(frozen=True, slots=True)
class ImitationObjective:
    """Negative log likelihood of the tokens that were given, in nats a token.

        L = -sum_t w_t log pi(y_t) / number of trained tokens

    Without weights that is supervised fine-tuning; with them, reward-weighted imitation.
    """

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of this part of a batch, and the plain likelihood beside it."""
        nll = -masked_mean(scored.logprob, batch.mask)
        loss = nll
        if batch.weight is not None:
            loss = -masked_mean(scored.logprob * batch.weight, batch.mask)
        entropy = masked_mean(scored.entropy, batch.mask)
        return loss * part.tokens, {"nll": nll, "entropy": entropy}

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Every row has something to teach, unless its weights are all zero."""
        if batch.weight is None:
            return torch.zeros_like(batch.length, dtype=torch.bool)
        return (batch.weight == 0).all(dim=-1)


def _needed(stream: Tensor | None, name: str) -> Tensor:
    """Return a stream that the objective cannot do without."""
    if stream is None:
        raise StateError(f"this objective needs {name}, which the batch does not have")
    return stream
