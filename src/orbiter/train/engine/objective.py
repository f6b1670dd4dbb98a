"""The losses that an update minimises: `PolicyObjective` for RL, `ImitationObjective` for SFT.

Each combines functions of `rl/`, weighted by its fields.
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

    This serves both GRPO and PPO, which differ in the source of the advantage and in the value
    term. The surrogate is aggregated by `aggregation`; the other terms are means over tokens.
    """

    clip_range: float = 0.2
    """PPO's epsilon for ratios below 1, and above 1 unless `clip_range_high` is set."""
    clip_range_high: float | None = None
    """Epsilon for ratios above 1 (DAPO's clip-higher)."""
    aggregation: Aggregation = "token"
    """How per-token losses become one number; see `rl.loss.aggregate`."""
    max_length: int | None = None
    """Divisor in tokens for the "constant" aggregation."""
    surrogate: Callable[..., PolicyLoss] | None = None
    """Policy loss to use instead of `clipped_surrogate`; it is called with the new and old log
    probabilities, advantage, mask, `aggregation` and `max_length`."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether the importance ratio is per token or per sequence (GSPO)."""
    kl_coef: float = 0.0
    """Weight of the KL estimate against `ref_logprob`."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Which KL estimator to use; see `rl.kl`."""
    vf_coef: float = 0.0
    """Weight of the value loss; with 0 the value function is not trained."""
    clip_range_value: float | None = None
    """Clip range of the value: moving further from the old value than this no longer lowers the
    loss."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's contribution to the loss, and its metrics."""
        policy = self._policy_loss(scored, batch)
        beside = self._beside(scored, batch)
        weight = {"entropy": -self.ent_coef, "kl": self.kl_coef, "vf_loss": self.vf_coef}
        loss = policy.loss * self.share(part)
        for name, term in beside.items():
            # A weight of 0 is skipped, so the term's graph is not run backward for nothing.
            if weight[name]:
                loss = loss + weight[name] * term * part.tokens
        return loss, {
            "pg_loss": policy.loss,
            "clip_fraction": policy.clip_fraction,
            "approx_kl": policy.approx_kl,
            "sampler_gap": _sampler_gap(scored, batch),
            **beside,
        }

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Rows with zero advantage have no gradient, unless another loss term is enabled."""
        if self.ent_coef or self.vf_coef or self.kl_coef:
            return torch.zeros_like(batch.length, dtype=torch.bool)
        return (_needed(batch.advantage, "advantage") == 0).all(dim=-1)

    def share(self, part: Part) -> float:
        """Return a part's weight: by its tokens for a mean over tokens, else by its rows."""
        return part.tokens if self.aggregation == "token" else part.rows

    def _policy_loss(self, scored: Scored, batch: Batch) -> PolicyLoss:
        """Return the policy's surrogate loss."""
        surrogate = self.surrogate or partial(
            clipped_surrogate,
            clip_range=self.clip_range,
            clip_range_high=self.clip_range_high,
            ratio=self.ratio,
        )
        return surrogate(
            scored.logprob,
            # Without recorded old log probabilities the ratio is 1, and its gradient is the
            # policy gradient.
            scored.logprob if batch.old_logprob is None else batch.old_logprob,
            _needed(batch.advantage, "advantage"),
            batch.mask,
            aggregation=self.aggregation,
            max_length=self.max_length,
        )

    def _beside(self, scored: Scored, batch: Batch) -> dict[str, Tensor]:
        """Return the terms added to the surrogate, as means over tokens."""
        terms = {"entropy": masked_mean(scored.entropy, batch.mask)}
        if batch.ref_logprob is not None:
            # The estimate is part of the loss, so the gradient flows through it, unlike a KL
            # penalty in the reward.
            estimate = KL_ESTIMATES[self.kl_estimator]
            kl = estimate(scored.logprob, batch.ref_logprob, batch.mask)
            terms["kl"] = masked_mean(kl, batch.mask)
        if self.vf_coef:
            terms["vf_loss"] = self._value_loss(scored, batch)
        return terms

    def _value_loss(self, scored: Scored, batch: Batch) -> Tensor:
        """Return the loss of the value head against the returns."""
        return clipped_value_loss(
            _needed(scored.value, "value"),
            _needed(batch.old_value, "old_value"),
            _needed(batch.return_, "return_"),
            batch.mask,
            clip_range=self.clip_range_value,
        ).loss


@dataclass(frozen=True, slots=True)
class ImitationObjective:
    """Negative log likelihood of the given tokens, in nats per token.

        L = -sum_t w_t log pi(y_t) / number of trained tokens

    Without weights this is supervised fine-tuning; with them, reward-weighted imitation.
    """

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's contribution to the loss, with the unweighted likelihood as metric."""
        nll = -masked_mean(scored.logprob, batch.mask)
        loss = nll
        if batch.weight is not None:
            loss = -masked_mean(scored.logprob * batch.weight, batch.mask)
        entropy = masked_mean(scored.entropy, batch.mask)
        return loss * part.tokens, {"nll": nll, "entropy": entropy}

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Only rows whose weights are all zero have no gradient."""
        if batch.weight is None:
            return torch.zeros_like(batch.length, dtype=torch.bool)
        return (batch.weight == 0).all(dim=-1)


def _sampler_gap(scored: Scored, batch: Batch) -> Tensor:
    """Return how far the sampler's log probabilities are from the training's, in nats a token.

    Both come from the same weights, so anything but rounding is a fault: a prompt that is tokenised
    differently, another temperature, an answer from older weights.
    """
    old = scored.logprob.detach() if batch.old_logprob is None else batch.old_logprob
    # A row without any log probability was given by the data, not sampled.
    sampled = batch.sampled_logprob.ne(0).any(dim=-1, keepdim=True)
    return masked_mean((old - batch.sampled_logprob).abs(), batch.mask & sampled)


def _needed(stream: Tensor | None, name: str) -> Tensor:
    """Return a tensor that the objective requires, or raise if the batch lacks it."""
    if stream is None:
        raise StateError(f"this objective needs {name}, which the batch does not have")
    return stream
