"""Takes DAPO's penalty for long answers off their rewards, before credit is assigned."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch

from orbiter.train.engine.rollout import Rollout
from orbiter.train.rl.overlong import overlong_penalty
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import SampleScores


class Shaped(NamedTuple):
    """Scores to learn from, and what was taken off them."""

    scores: SampleScores
    metrics: dict[str, float]


def with_overlong_penalty(
    config: VeRLConfig, scores: SampleScores, rollouts: Sequence[Rollout]
) -> Shaped:
    """Return the scores with the penalty in the totals; the metrics keep the rewards as given."""
    if not config.overlong_buffer or not rollouts:
        return Shaped(scores, {})
    # Sampled tokens only: the prompt's length is not the policy's doing.
    length = torch.tensor([sum(rollout.mask) for rollout in rollouts])
    penalties: list[float] = overlong_penalty(
        length,
        max_length=config.max_response_length,
        buffer=config.overlong_buffer,
        penalty=config.overlong_penalty,
    ).tolist()
    totals = [
        # The penalty is 0 or negative.
        None if total is None else total + penalty
        for total, penalty in zip(scores.total, penalties, strict=True)
    ]
    metrics = {
        "overlong": fmean(penalty < 0 for penalty in penalties),
        "overlong_penalty": fmean(penalties),
    }
    return Shaped(scores._replace(total=totals), metrics)
