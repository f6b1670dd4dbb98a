"""The loop of training a reward model on one machine: one update per batch of pairs.

Loading, checks and the lifecycle are in `reward_model_trainer.py`, the loss in `bradley_terry.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from orbiter.train.engine.models.classifier import empty_classifier
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.session import TrainingJob
from orbiter.train.engine.tasks import Tasks
from orbiter.train.engine.thread import work
from orbiter.train.preference.bradley_terry import BradleyTerryObjective
from orbiter.train.preference.encoding import EncodedPair
from orbiter.train.preference.reward_model_config import RewardModelConfig
from orbiter.train.preference.reward_model_rows import Scorer, score_batch, score_row
from orbiter.train.seeding import sub_seed

HEAD_STD = 0.02
"""Standard deviation of a new head's weights if the model's configuration names none."""


def all_items(pairs: Sequence[EncodedPair]) -> Tasks:
    """Return all items that are learned from, by which a resumed run recognises its data."""
    items = [item for pair in pairs for side in pair.sides for item in side.attempt.items]
    return Tasks(items, [[]] * len(items))


def order_of(pairs: Sequence[EncodedPair]) -> Tasks:
    """Return the pairs as tasks, to draw the order of training from."""
    return Tasks([pair.chosen.attempt.first for pair in pairs], [[]] * len(pairs))


def new_head(policy: Policy, seed: int) -> nn.Linear:
    """Return an untrained head for scores, as Transformers would draw it, but from a seed.

    Raises:
        ConfigError: Transformers has no sequence classifier of this architecture, so the reward
            model could not be saved.
    """
    config = policy.model.config.get_text_config()
    empty_classifier(policy.model.config, pad_token_id=None)
    head = nn.Linear(config.hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(sub_seed(seed, "reward head"))
    std = getattr(config, "initializer_range", None) or HEAD_STD
    with torch.no_grad():
        head.weight.normal_(0.0, std, generator=generator)
    return head.to(policy.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelJob(TrainingJob):
    """Everything that a run needs."""

    config: RewardModelConfig
    pairs: Sequence[EncodedPair]
    scorer: Scorer


async def fit(job: RewardModelJob) -> None:
    """Train for `epochs` passes, or until the time limit.

    Raises:
        TrainingError: the run diverged.
    """
    config, session, order = job.config, job.session, order_of(job.pairs)
    for step in range(session.position.step, session.steps):
        if session.position.within == 0:  # else the run was cancelled after this step's update
            rows = order.order(step, config.batch_size, seed=config.seed)
            await work(_take, job, [job.pairs[row] for row in rows])
        if await job.end_step():
            break


def _take(job: RewardModelJob, pairs: Sequence[EncodedPair]) -> None:
    """Take the update on these pairs."""
    config, scorer = job.config, job.scorer
    units = [[score_row(side, scorer.pad_token_id) for side in pair.sides] for pair in pairs]
    objective = BradleyTerryObjective(
        margin=torch.tensor([config.margin_coef * pair.margin for pair in pairs]),
        centering_coef=config.centering_coef,
    )
    job.session.take(score_batch(units, scorer.policy.device), objective)
