"""The training loop on logged episodes: weights them, and takes one update per batch of tasks.

Each token of an episode gets a weight that is a constant of the update, so the loss is that of
weighted imitation; the methods differ only in the weight. Loading, checks and the lifecycle
are in `trainer.py`, the formulas in `rl/off_policy.py` and `rl/advantage.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orbiter.train.agents.logged import LoggedEpisode
from orbiter.train.agents.streams import token_weights
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.objective import ImitationObjective
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.session import TrainingJob
from orbiter.train.engine.tasks import Tasks
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import logprob
from orbiter.train.errors import DataError
from orbiter.train.offline.config import OfflineConfig, OfflineMethod
from orbiter.train.rl.advantage import group_relative_advantage
from orbiter.train.rl.off_policy import (
    awr_weight,
    effective_sample_size,
    episode_log_ratio,
    topr_weight,
    truncated_weight,
)

log = logging.getLogger(__name__)

EPISODES_AT_ONCE = 64
"""Episodes that are measured between two checks for cancellation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Logged episodes in groups, with the advantage of each."""

    groups: Sequence[Sequence[int]]
    """The episodes of each task, as positions in `episodes`."""
    episodes: Sequence[LoggedEpisode]
    advantage: Float[Tensor, "E"]
    """The advantage of each episode; for method="imitate" its reward divided by the mean reward."""
    longest: int
    """The largest number of sampled tokens in an episode: the divisor of
    loss_aggregation="constant"."""

    @property
    def order(self) -> Tasks:
        """The groups as tasks, to draw the order of training from."""
        return Tasks([self.episodes[group[0]].items[0] for group in self.groups], [[]] * len(self))

    def __len__(self) -> int:
        return len(self.groups)


def make_log(episodes: Sequence[LoggedEpisode], config: OfflineConfig) -> Log:
    """Group episodes by task and compute their advantages."""
    of_task: dict[str, list[int]] = {}
    for position, episode in enumerate(episodes):
        of_task.setdefault(episode.task, []).append(position)
    groups = list(of_task.values())
    reward = torch.tensor([episode.reward for episode in episodes], dtype=torch.float64)
    return Log(
        groups=groups,
        episodes=episodes,
        advantage=_advantage(reward, groups, config),
        longest=max(episode.sampled_tokens for episode in episodes),
    )


def _advantage(
    reward: Float[Tensor, "E"], groups: Sequence[Sequence[int]], config: OfflineConfig
) -> Float[Tensor, "E"]:
    if config.method is OfflineMethod.IMITATE:
        # Divided by the mean, so that the learning rate means the same whatever the scale of the
        # rewards.
        mean = reward.mean()
        return reward / mean if mean > 0 else torch.zeros_like(reward)
    if config.baseline == "none":
        return reward
    compared = groups if config.baseline == "task" else [range(len(reward))]
    return _compared(reward, compared, scaled=config.scale_rewards)


def require_signal(log_: Log, config: OfflineConfig) -> None:
    """Make sure that there is something to learn.

    Raises:
        DataError: every advantage is zero, or a reward is negative where it must be a weight.
    """
    rewards = [episode.reward for episode in log_.episodes]
    if config.method is OfflineMethod.IMITATE and (min(rewards) < 0 or not any(rewards)):
        raise DataError(
            "method='imitate' weights episodes by their rewards, which must not be negative nor "
            f"all zero; they lie between {min(rewards):g} and {max(rewards):g}"
        )
    if not bool(log_.advantage.any()):
        raise DataError(
            f"nothing can be learned from these {len(rewards)} episodes: with "
            f"baseline={config.baseline!r} every advantage is zero, since all episodes that are "
            "compared have the same reward, or there is one episode a task; use "
            "baseline='dataset', or log several attempts at each task (the same task_id)"
        )


def _compared(
    reward: Float[Tensor, "E"], groups: Sequence[Sequence[int]], *, scaled: bool
) -> Float[Tensor, "E"]:
    """Return how much better each episode did than its group; zero in a group of one."""
    # A table of one column is refused; with two, a group of one is compared with nothing.
    size = max(2, *map(len, groups)) if groups else 2
    table = reward.new_zeros(len(groups), size)
    valid = torch.zeros(len(groups), size, dtype=torch.bool)
    for row, group in enumerate(groups):
        table[row, : len(group)] = reward[list(group)]
        valid[row, : len(group)] = True
    advantage = group_relative_advantage(table, valid=valid, scale="std" if scaled else "none")
    spread = torch.zeros_like(reward)
    for row, group in enumerate(groups):
        spread[list(group)] = advantage[row, : len(group)]
    return spread


class LoggedBatch(NamedTuple):
    """Episodes as a batch of their streams."""

    batch: Batch
    episode: Int[Tensor, "B"]
    """The episode of each row, counted from 0 in this batch."""
    chosen: Sequence[int]
    """The position of each episode in the log."""


def batch_of(log_: Log, chosen: Sequence[int], device: torch.device) -> LoggedBatch:
    """Return episodes as a batch, with the stored log probabilities as those of the sampler."""
    rows: list[Rollout] = []
    episode: list[int] = []
    for number, position in enumerate(chosen):
        for stream in log_.episodes[position].streams:
            rows.append(
                Rollout(stream.token_ids, stream.mask, stream.logprobs, stream.prompt_length)
            )
            episode.append(number)
    return LoggedBatch(collate(rows, device=device), torch.tensor(episode, device=device), chosen)


class Weighted(NamedTuple):
    """A batch that is ready for an update, and statistics of its weights."""

    batch: Batch
    metrics: dict[str, float]
    effective_share: float
    """Effective sample size as a share of the episodes; 1 if no ratio is used."""


def weighted(policy: Policy, config: OfflineConfig, log_: Log, logged: LoggedBatch) -> Weighted:
    """Give every sampled token its weight in the loss  -sum_t weight_t log pi(y_t) / tokens."""
    batch, count = logged.batch, len(logged.chosen)
    # Computed over the whole log in float64, used in float32.
    advantage = log_.advantage[list(logged.chosen)].float().to(batch.mask.device)
    metrics = {"episodes": float(count), "advantage_std": float(advantage.std(correction=0))}
    share = 1.0
    per_token: Tensor | None = None
    if config.method.needs_logprobs:
        token_ratio = _log_ratio(policy, config, batch)
        ratio = episode_log_ratio(
            # The ratio is formed already, so it is compared with zero.
            token_ratio,
            torch.zeros_like(token_ratio),
            batch.mask,
            logged.episode,
            episodes=count,
        )
        share = float(effective_sample_size(ratio)) / count
        metrics |= _ratio_metrics(config, ratio, share)
        if config.method is OfflineMethod.TOPR:
            factor = advantage * topr_weight(ratio, advantage)
        elif config.importance == "episode":
            factor = advantage * truncated_weight(ratio, limit=_limit(config))
        else:
            factor = advantage
            # A separate weight for each token: less variance than the product over the episode,
            # but biased.
            per_token = truncated_weight(token_ratio, limit=_limit(config))
    elif config.method is OfflineMethod.AWR:
        factor = awr_weight(advantage, temperature=config.awr_temperature, limit=config.awr_limit)
    else:
        factor = advantage
    weight = _shares(log_, logged, config) * factor[logged.episode][:, None]
    if per_token is not None:
        weight = weight * per_token
    return Weighted(replace(batch, weight=weight * batch.mask), metrics, share)


def _limit(config: OfflineConfig) -> float:
    return math.inf if config.max_importance is None else config.max_importance


def _log_ratio(policy: Policy, config: OfflineConfig, batch: Batch) -> Float[Tensor, "B T"]:
    """Return log pi - log mu of every sampled token under the current policy."""
    now = logprob(
        policy,
        batch,
        temperature=config.temperature,
        micro_batch_tokens=config.micro_batch_tokens,
    )
    return (now - batch.sampled_logprob) * batch.mask


def _ratio_metrics(
    config: OfflineConfig, ratio: Float[Tensor, "E"], share: float
) -> dict[str, float]:
    limit = 1.0 if config.method is OfflineMethod.TOPR else _limit(config)
    return {
        "effective_share": share,
        "log_ratio": float(ratio.mean()),
        "truncated": float((ratio > math.log(limit)).float().mean()) if limit < math.inf else 0.0,
    }


def _shares(log_: Log, logged: LoggedBatch, config: OfflineConfig) -> Float[Tensor, "B T"]:
    """Return the share of each token in the loss, times the number of tokens that it divides by."""
    streams = [log_.episodes[position].streams for position in logged.chosen]
    shares = token_weights(streams, config.loss_aggregation, max_tokens=log_.longest)
    mask = logged.batch.mask
    table = torch.zeros(mask.shape, device=mask.device)
    for row, of_row in enumerate(share for of_episode in shares for share in of_episode):
        table[row, : len(of_row)] = torch.tensor(of_row, device=mask.device)
    # The objective divides by the number of tokens of the batch; the shares are already the mean.
    return table * int(mask.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineJob(TrainingJob):
    """Everything that a run on logged episodes needs."""

    config: OfflineConfig
    log: Log


async def fit(job: OfflineJob) -> None:
    """Train for `epochs` passes, until the time limit, or until the policy is too far away.

    Raises:
        TrainingError: the run diverged.
    """
    config, session, order = job.config, job.session, job.log.order
    objective = ImitationObjective()
    for step in range(session.position.step, session.steps):
        if session.position.within == 0:  # otherwise the run was cancelled after this step's update
            groups = order.order(step, config.batch_size, seed=config.seed)
            chosen = [position for group in groups for position in job.log.groups[group]]
            ready = await work(_prepare, session.policy, config, job.log, chosen)
            # Before the update, which a few episodes would decide alone.
            if ready.effective_share < config.min_effective_share:
                log.warning(
                    "stopped at step %d: the effective sample size is %.3g of %d logged episodes, "
                    "below min_effective_share=%g; the policy has moved too far from the one that "
                    "sampled them",
                    *(step, ready.effective_share * len(chosen), len(chosen)),
                    config.min_effective_share,
                )
                break
            session.position.row = ready.metrics | {
                "reward": _mean_reward(job.log, chosen),
            }
            await work(session.take, ready.batch, objective, temperature=config.temperature)
        if await job.end_step():
            break


def _prepare(policy: Policy, config: OfflineConfig, log_: Log, chosen: Sequence[int]) -> Weighted:
    return weighted(policy, config, log_, batch_of(log_, chosen, policy.device))


def _mean_reward(log_: Log, chosen: Sequence[int]) -> float:
    return sum(log_.episodes[position].reward for position in chosen) / len(chosen)


class MeasuredLog(NamedTuple):
    """How a policy relates to logged episodes."""

    loss: float
    """Negative log likelihood of the sampled tokens, in nats per token."""
    log_ratio: Float[Tensor, "E"] | None
    """The log ratio of each episode; None without stored log probabilities."""


async def measure(policy: Policy, config: OfflineConfig, log_: Log, *, ratios: bool) -> MeasuredLog:
    """Compute the likelihood of logged episodes under the policy."""
    total, tokens = 0.0, 0
    log_ratios: list[Tensor] = []
    for first in range(0, len(log_.episodes), EPISODES_AT_ONCE):
        chosen = range(first, min(first + EPISODES_AT_ONCE, len(log_.episodes)))
        logged = await work(batch_of, log_, chosen, policy.device)
        now = await work(
            logprob,
            policy,
            logged.batch,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        mask = logged.batch.mask
        total -= float((now * mask).double().sum())
        tokens += int(mask.sum())
        # Only logs with the sampler's log probabilities have a ratio.
        if ratios:
            sampled = logged.batch.sampled_logprob
            log_ratios.append(
                episode_log_ratio(now, sampled, mask, logged.episode, episodes=len(chosen)).cpu()
            )
    return MeasuredLog(total / tokens, torch.cat(log_ratios) if log_ratios else None)
