"""Credit assignment: turn the rewards of a step's samples into an advantage for every token.

Here the samples become a batch with the log probabilities that the algorithm needs; the algorithm
itself (`algorithms/`) does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.update import logprob, ref_logprob
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.algorithms.base import Credited, Samples, Turns
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import SampleScores


def credit(
    policy: Policy, config: VeRLConfig, rollouts: Sequence[Rollout], scores: SampleScores
) -> Credited:
    """Turn rewards into an advantage for every token, by the algorithm of the config.

    Skipped samples are left out of the batch and of all means.
    """
    reward, valid = grouped(scores.total, config.group_size)
    # Skipped samples never enter the batch, so they change no mean.
    kept = valid.flatten().nonzero()[:, 0].tolist()
    if not kept:
        return Credited(None, {}, flat=True)
    rows = TrainingRows([rollouts[row] for row in kept], list(range(len(kept))))
    return credit_rows(policy, config, rows, reward=reward, valid=valid)


class TrainingRows(NamedTuple):
    """The rows to train on: token sequences, and the sample that each belongs to."""

    rollouts: Sequence[Rollout]
    sample: Sequence[int]
    """Numbered over the samples that got a reward."""
    turns: Turns | None = None
    """For episodes: their turns, aligned with the rows."""


def credit_rows(
    policy: Policy,
    config: VeRLConfig,
    rows: TrainingRows,
    *,
    reward: Float[Tensor, "P G"],
    valid: Bool[Tensor, "P G"],
) -> Credited:
    """Give every token of the rows its advantage; a sample may have several rows."""
    batch = collate(rows.rollouts, device=policy.device)
    batch = _with_old_policies(policy, config, batch)
    # Several rows may share a sample, as the streams of an episode do.
    of_row: Int[Tensor, "B"] = torch.tensor(list(rows.sample), device=policy.device)
    samples = Samples(policy, batch, reward, valid, of_row, rows.turns)
    return ALGORITHMS[config.algorithm].credit(config, samples)


def _with_old_policies(policy: Policy, config: VeRLConfig, batch: Batch) -> Batch:
    """Add the log probabilities of the sampling policy and of the reference where needed.

    A single update does not need the sampling policy's: they equal the current ones, and the ratio
    is exactly 1.
    """
    # After the first update the policy has moved. The sampler's own log probabilities differ by
    # rounding, which would disturb the ratio.
    # The update's minibatches are counted in rows, as `minibatches` cuts them.
    several = config.ppo_epochs > 1 or 0 < config.minibatch_size < len(batch.length)
    if several or ALGORITHMS[config.algorithm].needs_old_logprob(config):
        old = logprob(
            policy,
            batch,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        batch = replace(batch, old_logprob=old)
    if config.kl_coef:
        reference = ref_logprob(
            policy,
            batch,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        batch = replace(batch, ref_logprob=reference)
    return batch


def grouped(
    total: Sequence[float | None], group_size: int
) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
    """Arrange the rewards by prompt, in float64, with a mask of the samples that have one."""
    # In float64: differences of almost equal rewards decide the sign of an advantage.
    reward = torch.tensor([each or 0.0 for each in total], dtype=torch.float64)
    valid = torch.tensor([each is not None for each in total])
    return reward.view(-1, group_size), valid.view(-1, group_size)
