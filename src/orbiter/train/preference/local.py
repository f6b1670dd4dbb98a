"""The loop of learning from preferences on one machine: one update per batch of pairs.

Loading, checks and the lifecycle are in `trainer.py`, the losses in `methods/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.engine.policy import Policy
from orbiter.train.engine.session import TrainingJob
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import logprob
from orbiter.train.evaluation import Interval, mean_interval
from orbiter.train.preference.config import PreferenceConfig
from orbiter.train.preference.encoding import batch_of
from orbiter.train.preference.material import Material
from orbiter.train.preference.methods import PAIR_LOSSES, kl_estimate
from orbiter.train.preference.objective import (
    PairObjective,
    VerdictObjective,
    answers_of,
    pair_answers,
    pair_metrics,
    verdict_loss,
    verdict_metrics,
)
from orbiter.train.preference.reference import ReferenceLogprobs

UNITS_AT_ONCE = 64
"""Pairs or answers that are measured between two checks for cancellation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Pairs or answers, with what is compared against."""

    config: PreferenceConfig
    material: Material
    reference: ReferenceLogprobs

    def ref_logprob(self, rows: Sequence[int]) -> Float[Tensor, "U sides"]:
        """Return the reference's log probability of the answers of these units; 0 without one."""
        needed = self.config.method.needs_reference
        units = [self.material.units[row] for row in rows]
        numbers = [[self.reference.of(side) if needed else 0.0 for side in unit] for unit in units]
        # Sums of log probabilities of whole answers, computed once before training.
        return torch.tensor(numbers)

    def desirable(self, rows: Sequence[int]) -> Bool[Tensor, "U"]:
        """Return which of these answers are good."""
        return torch.tensor([self.material.desirable[row] for row in rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceJob(TrainingJob):
    """Everything that a run needs."""

    preferences: Preferences


async def fit(job: PreferenceJob) -> None:
    """Train for `epochs` passes, or until the time limit.

    Raises:
        TrainingError: the run diverged.
    """
    config, session, order = job.preferences.config, job.session, job.preferences.material.order
    for step in range(session.position.step, session.steps):
        # A step is one update, so `within` is 0 or 1.
        if session.position.within == 0:  # else the run was cancelled after this step's update
            rows = order.order(step, config.batch_size, seed=config.seed)
            await work(_update_on, job, rows)
        if await job.end_step():
            break


def _update_on(job: PreferenceJob, rows: Sequence[int]) -> None:
    """Take the update on these units."""
    preferences, policy = job.preferences, job.session.policy
    config = preferences.config
    # Both sides of a pair are in one batch, so their shared prompt runs once.
    batch = batch_of([preferences.material.units[row] for row in rows], policy.device)
    ref = preferences.ref_logprob(rows).to(policy.device)
    if config.method.is_paired:
        job.session.take(batch, PairObjective(config=config, ref_logprob=ref))
        return
    # KTO's reference point is a KL, which is not negative; the estimate may be.
    kl = _kl(policy, preferences, rows).clamp(min=0)
    # Stored before the update, because finish_step merges it with the update's metrics.
    job.session.position.row = {"kl": float(kl)}
    desirable = preferences.desirable(rows).to(policy.device)
    objective = VerdictObjective(config=config, ref_logprob=ref, desirable=desirable, kl=kl)
    job.session.take(batch, objective)


def _kl(policy: Policy, preferences: Preferences, rows: Sequence[int]) -> Float[Tensor, ""]:
    """Estimate KL(policy || reference) from the mismatched answers of these units."""
    mismatched = [preferences.material.mismatched[row] for row in rows]
    batch = batch_of([[each] for each in mismatched], policy.device)
    # No gradient: the reference point is a constant of the update in KTO.
    now = logprob(policy, batch, micro_batch_tokens=preferences.config.micro_batch_tokens)
    numbers = [[preferences.reference.of(each)] for each in mismatched]
    return kl_estimate(answers_of(now, batch, torch.tensor(numbers).to(policy.device)).answers)


class MeasuredRanking(NamedTuple):
    """How well a policy ranks held-out answers; intervals are over tasks."""

    loss: float
    """Mean over the pairs or answers."""
    accuracy: Interval
    margin: Interval

    def metrics(self) -> dict[str, float]:
        """Return them by name; an end that a single task does not determine is left out."""
        values = {"loss": self.loss, "accuracy": self.accuracy.mean, "margin": self.margin.mean}
        for name, interval in (("accuracy", self.accuracy), ("margin", self.margin)):
            ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
            values |= {end: value for end, value in ends.items() if math.isfinite(value)}
        return values


async def measure(policy: Policy, preferences: Preferences) -> MeasuredRanking:
    """Measure loss, accuracy and margin without learning."""
    count = len(preferences.material)
    # In parts, so that a cancellation takes effect between two of them.
    parts = [range(at, min(at + UNITS_AT_ONCE, count)) for at in range(0, count, UNITS_AT_ONCE)]
    kl = 0.0
    if not preferences.config.method.is_paired:
        for rows in parts:
            # A weighted mean, since the last part may be smaller.
            kl += float(await work(_kl, policy, preferences, rows)) * len(rows) / count
    measured = [await work(_measure_rows, policy, preferences, rows, kl) for rows in parts]
    loss, accuracy, margin = ([value for part in measured for value in part[at]] for at in range(3))
    task = preferences.material.task
    return MeasuredRanking(fmean(loss), _over_tasks(accuracy, task), _over_tasks(margin, task))


class _RowMeasures(NamedTuple):
    """Measurements of some units, in their order."""

    loss: list[float]
    accuracy: list[float]
    margin: list[float]


@torch.no_grad()
def _measure_rows(
    policy: Policy, preferences: Preferences, rows: Sequence[int], kl: float
) -> _RowMeasures:
    config = preferences.config
    batch = batch_of([preferences.material.units[row] for row in rows], policy.device)
    now = logprob(policy, batch, micro_batch_tokens=config.micro_batch_tokens)
    ref = preferences.ref_logprob(rows).to(policy.device)
    if config.method.is_paired:
        pairs = pair_answers(now, batch, ref)
        of_pairs = PAIR_LOSSES[config.method](config, pairs.chosen, pairs.rejected)
        loss, metrics = of_pairs.loss, pair_metrics(of_pairs)
    else:
        desirable = preferences.desirable(rows).to(policy.device)
        answers = answers_of(now, batch, ref).answers
        of_answers = verdict_loss(config, answers, desirable, now.new_tensor(kl))
        loss, metrics = of_answers.loss, verdict_metrics(of_answers, desirable)
    return _RowMeasures(loss.tolist(), metrics["accuracy"].tolist(), metrics["margin"].tolist())


def _over_tasks(values: Sequence[float], task: Sequence[int]) -> Interval:
    """Return the mean over the tasks, since the pairs of one task are not independent."""
    of_task: dict[int, list[float]] = {}
    for value, number in zip(values, task, strict=True):
        of_task.setdefault(number, []).append(value)
    return mean_interval([fmean(each) for each in of_task.values()])
