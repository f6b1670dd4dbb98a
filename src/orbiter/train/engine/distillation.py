"""The loss of distillation: the divergence from a teacher, beside the loss of a reward.

A local teacher runs beside the student in every update, over the whole vocabulary. For a teacher
behind an endpoint only the log probabilities of the sampled tokens are known; they become an
advantage of each token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.forward.generic import place
from orbiter.train.engine.forward.teacher_head import taught_scores
from orbiter.train.engine.objective import PolicyObjective
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.update import (
    MICRO_BATCH_TOKENS,
    Part,
    Scored,
    logprob,
    micro_batches,
    score,
)
from orbiter.train.errors import StateError
from orbiter.train.rl.kl import kl_k1
from orbiter.train.rl.loss import aggregate
from orbiter.train.rl.masked import masked_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillObjective:
    """The loss of a reward + coef times the divergence from the teacher.

        L = L_reward + coef agg_t D_t                   over the vocabulary, D of `rl/distillation`
        A_t = A_reward + coef (log pi_T(y_t) - log pi_old(y_t))         with sampled tokens only

    The second is the policy gradient of the reverse KL of each token's distribution; a token is not
    credited for the divergence of later ones. Without a reward its advantages are zero.
    """

    reward: PolicyObjective
    """The loss of the reward; its aggregation is that of the divergence, too."""
    coef: float = 1.0
    beta: float = 1.0
    """Interpolates from forward KL (0) to reverse KL (1); see `generalized_jsd`."""
    sampled: bool = False
    """Whether the teacher's log probabilities of the sampled tokens are all that is known."""

    def score(self, policy: Policy, batch: Batch, *, temperature: float) -> Scored:
        """Return the policy's scores; with a local teacher also the divergence from it."""
        if self.sampled:
            return score(policy, batch, temperature=temperature)
        if policy.teacher is None:
            raise StateError("distillation over the vocabulary needs a policy with a teacher")
        with torch.no_grad():
            # Its states only: the logits of both models are computed chunk by chunk below.
            teacher = policy.teacher.forward.head_input(batch)
        scores = taught_scores(
            policy.forward.head_input(batch),
            teacher,
            batch.token_ids[batch.mask],
            temperature=temperature,
            beta=self.beta,
        )
        logprob, entropy, divergence = (place(each, batch.mask) for each in scores)
        return Scored(logprob=logprob, entropy=entropy, value=None, divergence=divergence)

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's contribution to the loss, and its metrics."""
        divergence = self._divergence(scored, batch)
        weighted = divergence if batch.weight is None else divergence * batch.weight
        if self.sampled:
            assert batch.advantage is not None
            # A constant: its gradient would be that of k1 as a loss, which is zero on average.
            advantage = batch.advantage - self.coef * weighted.detach()
            batch = replace(batch, advantage=advantage)
        loss, metrics = self.reward(scored, batch, part)
        if not self.sampled:
            reward = self.reward
            # The same aggregation as the reward's loss, so that `coef` weighs the two alike at any
            # length.
            mean = aggregate(
                weighted, batch.mask, aggregation=reward.aggregation, max_length=reward.max_length
            )
            loss = loss + self.coef * mean * reward.share(part)
        return loss, metrics | {"divergence": masked_mean(divergence, batch.mask)}

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Every row has a gradient, also if its reward teaches nothing."""
        return torch.zeros_like(batch.length, dtype=torch.bool)

    def _divergence(self, scored: Scored, batch: Batch) -> Float[Tensor, "B T"]:
        if not self.sampled:
            if scored.divergence is None:
                raise StateError("this objective needs the divergence, which was not scored")
            return scored.divergence
        if batch.teacher_logprob is None:
            raise StateError("this objective needs teacher_logprob, which the batch does not have")
        # The policy that sampled: before the first update of a step it is the current one.
        old = scored.logprob.detach() if batch.old_logprob is None else batch.old_logprob
        return kl_k1(old, batch.teacher_logprob, batch.mask)


def teacher_logprob(
    policy: Policy,
    batch: Batch,
    *,
    temperature: float = 1.0,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> Float[Tensor, "B T"]:
    """Return the local teacher's log probability of every trained token, in nats."""
    if policy.teacher is None:
        raise StateError("this policy has no teacher")
    return logprob(
        policy.teacher, batch, temperature=temperature, micro_batch_tokens=micro_batch_tokens
    )


@torch.no_grad()
def measure_divergence(
    policy: Policy,
    batch: Batch,
    *,
    temperature: float,
    beta: float,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> float:
    """Return the mean divergence of the policy from its local teacher, in nats per token."""
    objective = DistillObjective(reward=PolicyObjective(), beta=beta)
    trained = batch.mask.any(dim=-1).nonzero()[:, 0]
    total = 0.0
    for rows, forward in micro_batches(policy.forward, batch, trained, micro_batch_tokens):
        student = replace(policy, forward=forward)
        scored = objective.score(student, batch.select(rows), temperature=temperature)
        assert scored.divergence is not None
        total += float(scored.divergence.double().sum())
    return total / max(1, int(batch.mask.sum()))
