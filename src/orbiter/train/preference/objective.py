"""The losses that an update on preferences minimises, however it is cut into micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.update import Part, Scored
from orbiter.train.errors import StateError
from orbiter.train.preference.config import PreferenceConfig
from orbiter.train.preference.encoding import CHOSEN, REJECTED, AttemptBatch
from orbiter.train.preference.methods import PAIR_LOSSES, Answers, PairLoss, VerdictLoss, kto_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class PairObjective:
    """The mean loss over the pairs of a step."""

    config: PreferenceConfig
    ref_logprob: Float[Tensor, "U 2"]
    """For the chosen and the rejected answer of each pair of the step; 0 without a reference."""

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's share of the mean, and metrics as means over the pairs."""
        pairs = pair_answers(scored.logprob, batch, self.ref_logprob)
        losses = PAIR_LOSSES[self.config.method](self.config, pairs.chosen, pairs.rejected)
        metrics = pair_metrics(losses) | {
            "chosen_logprob": pairs.chosen.logprob.detach(),
            "rejected_logprob": pairs.rejected.logprob.detach(),
        }
        # The share is counted in pairs, not tokens, so the sum over parts is the mean over all
        # pairs.
        share = len(pairs.units) / len(self.ref_logprob)
        return losses.loss.mean() * share, _by_units(metrics, share, part)

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Every pair has a gradient."""
        return torch.zeros_like(batch.length, dtype=torch.bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictObjective:
    """The mean KTO loss over the answers of a step."""

    config: PreferenceConfig
    ref_logprob: Float[Tensor, "U 1"]
    desirable: Bool[Tensor, "U"]
    kl: Float[Tensor, ""]

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's share of the mean, and metrics as means over the answers."""
        units, answers = answers_of(scored.logprob, batch, self.ref_logprob)
        losses = verdict_loss(self.config, answers, self.desirable[units], self.kl)
        metrics = verdict_metrics(losses, self.desirable[units])
        # In answers, as for pairs above.
        share = len(units) / len(self.ref_logprob)
        return losses.loss.mean() * share, _by_units(metrics, share, part)

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Every answer has a gradient."""
        return torch.zeros_like(batch.length, dtype=torch.bool)


class UnitAnswers(NamedTuple):
    """The answers of some units of a step."""

    units: Int[Tensor, "u"]
    """The numbers of the units in the step, in rising order."""
    answers: Answers
    """In the order of the units; the sides of a pair are adjacent."""


def answers_of(
    logprob: Float[Tensor, "B T"], batch: Batch, ref_logprob: Float[Tensor, "U sides"]
) -> UnitAnswers:
    """Sum token log probabilities over each answer.

    Args:
        logprob: Log probabilities of the tokens of the batch; 0 where its mask is False.
        batch: Some units of a step, each whole.
        ref_logprob: Log probabilities of the answers of all units of the step.
    """
    if not isinstance(batch, AttemptBatch) or batch.unit is None:
        raise StateError("this objective needs a batch made by preference.encoding.batch_of")
    sides = ref_logprob.shape[1]
    units, unit_index = batch.unit.unique(return_inverse=True)
    # The sides of a unit are adjacent, chosen before rejected.
    answer = unit_index * sides + batch.side
    size = len(units) * sides
    # Adds up the rows of an answer with several token sequences.
    total = logprob.new_zeros(size).index_add(0, answer, logprob.sum(dim=-1))
    tokens = answer.new_zeros(size).index_add(0, answer, batch.mask.sum(dim=-1))
    ref = ref_logprob[units].flatten().to(total.dtype)
    return UnitAnswers(units, Answers(total, tokens, ref))


class PairAnswers(NamedTuple):
    """The answers of some pairs of a step."""

    units: Int[Tensor, "u"]
    """The numbers of the pairs in the step, in rising order."""
    chosen: Answers
    rejected: Answers


def pair_answers(
    logprob: Float[Tensor, "B T"], batch: Batch, ref_logprob: Float[Tensor, "U 2"]
) -> PairAnswers:
    """Sum token log probabilities over the two answers of each pair; see `answers_of`."""
    units, both = answers_of(logprob, batch, ref_logprob)
    chosen = Answers(*(each.view(-1, 2)[:, CHOSEN] for each in both))
    rejected = Answers(*(each.view(-1, 2)[:, REJECTED] for each in both))
    return PairAnswers(units, chosen, rejected)


def pair_metrics(losses: PairLoss) -> dict[str, Tensor]:
    """Return the implicit rewards of each pair, and 1 for each that is ranked correctly."""
    margin = losses.chosen_reward - losses.rejected_reward
    return {
        "accuracy": (margin > 0).to(margin.dtype),
        "margin": margin,
        "chosen_reward": losses.chosen_reward,
        "rejected_reward": losses.rejected_reward,
    }


def verdict_loss(
    config: PreferenceConfig,
    answers: Answers,
    desirable: Bool[Tensor, "N"],
    kl: Float[Tensor, ""],
) -> VerdictLoss:
    """Return the KTO loss of answers under the settings."""
    return kto_loss(
        answers,
        desirable,
        kl,
        beta=config.strength,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )


def verdict_metrics(losses: VerdictLoss, desirable: Bool[Tensor, "N"]) -> dict[str, Tensor]:
    """Return how far each answer is on its right side of the reference point, and 1 if it is."""
    # KTO's reward is measured from the reference point, so its sign says on which side an answer
    # is.
    margin = torch.where(desirable, losses.reward, -losses.reward)
    return {"accuracy": (margin > 0).to(margin.dtype), "margin": margin}


def _by_units(metrics: dict[str, Tensor], share: float, part: Part) -> dict[str, Tensor]:
    """Return means that the update, which weights them by tokens, sums to means over units."""
    # The update multiplies by the part's tokens, which this divides out again.
    return {name: values.mean() * (share / part.tokens) for name, values in metrics.items()}
