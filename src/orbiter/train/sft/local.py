"""The supervised fine-tuning loop on one machine: one update per batch of sequences.

The sequences are made in `lessons.py`; loading, checks and the lifecycle are in `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.objective import ImitationObjective
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.session import TrainingJob
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import micro_batches
from orbiter.train.sft.config import SFTConfig
from orbiter.train.sft.lessons import Lessons

ROWS_AT_ONCE = 64
"""Sequences evaluated between two checks for cancellation."""


def batch_of(lessons: Lessons, rows: Sequence[int], device: torch.device) -> Batch:
    """Return these sequences as a batch; only the answers are trained on."""
    picked = [
        Rollout(stream.token_ids, stream.mask, stream.logprobs, stream.prompt_length)
        for stream in (lessons.streams[row] for row in rows)
    ]
    batch = collate(picked, device=device)
    if lessons.weights is None:
        return batch
    weight = torch.zeros(batch.mask.shape, device=device)
    for index, row in enumerate(rows):
        of_row = torch.tensor(lessons.weights[row], device=device)
        weight[index, : len(of_row)] = of_row
    return replace(batch, weight=weight * batch.mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImitationJob(TrainingJob):
    """Everything that a fine-tuning run needs."""

    config: SFTConfig
    lessons: Lessons


async def fit(job: ImitationJob) -> None:
    """Train for `epochs` passes, or until the time limit.

    Raises:
        TrainingError: the run diverged.
    """
    config, session, tasks = job.config, job.session, job.lessons.order
    objective = ImitationObjective()
    for step in range(session.position.step, session.steps):
        if session.position.within == 0:  # otherwise the run was cancelled after this step's update
            rows = tasks.order(step, config.batch_size, seed=config.seed)
            batch = await work(batch_of, job.lessons, rows, session.policy.device)
            await work(session.take, batch, objective)
        if await job.end_step():
            break


class Imitated(NamedTuple):
    """How well a model predicts the given answers, over all answer tokens."""

    loss: float
    """Negative log likelihood, in nats per token."""
    accuracy: float
    """Share of tokens that are the model's likeliest choice, given the correct preceding tokens."""


async def imitated(policy: Policy, config: SFTConfig, lessons: Lessons) -> Imitated:
    """Measure loss and accuracy on the given answers."""
    total, hits, tokens = 0.0, 0, 0
    for first in range(0, len(lessons.streams), ROWS_AT_ONCE):
        rows = range(first, min(first + ROWS_AT_ONCE, len(lessons.streams)))
        seen = await work(_read, policy, lessons, rows, config.micro_batch_tokens)
        total, hits, tokens = total + seen.loss, hits + seen.hits, tokens + seen.tokens
    return Imitated(total / tokens, hits / tokens)


class _Read(NamedTuple):
    """Sums over the answer tokens of a few rows."""

    loss: float
    hits: int
    tokens: int


@torch.no_grad()
def _read(policy: Policy, lessons: Lessons, rows: Sequence[int], micro_batch_tokens: int) -> _Read:
    batch = batch_of(lessons, rows, policy.device)
    # No row is idle in a measurement, so all of them are split.
    every = torch.arange(len(rows), device=policy.device)
    loss, hits = 0.0, 0
    for part, forward in micro_batches(policy.forward, batch, every, micro_batch_tokens):
        scores = forward.score(batch.select(part), temperature=1.0).tokens
        # Summed in float64: a sum over many tokens in float32 loses digits of the mean.
        loss -= float(scores.logprob.double().sum())
        hits += int(scores.likeliest.sum())
    return _Read(loss, hits, int(batch.mask.sum()))
