"""Training on whole episodes of an agent: play them, score them, give every stream its advantage.

The unit is the episode. A group holds the attempts at one task; the advantage of an episode reaches
every token that the policy sampled in it, whichever turn or stream it is in. Episodes that failed
for a reason that says nothing about the policy are in no batch and in no mean. The loop is that of
`local.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from orbiter.train.agents.episode import FAILURES, Episode
from orbiter.train.agents.runner import run_episode
from orbiter.train.agents.streams import token_weights
from orbiter.train.callback import map_bounded
from orbiter.train.engine.batch import Batch
from orbiter.train.engine.objective import PolicyObjective
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.session import Session, work
from orbiter.train.errors import CallbackError
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.live import LivePolicy, LiveStats
from orbiter.train.trainer import TrainMetrics
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.algorithms.base import Credited
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.credit import Rows, credit_rows, grouped
from orbiter.train.verl.evaluate import Assessment, attempts_of, reward_metrics, summarise
from orbiter.train.verl.local import Source, note
from orbiter.train.verl.reward import RewardSpec, Scores, score
from orbiter.train.verl.samples import episode_records
from orbiter.train.verl.tasks import AgentTasks

EPISODES_AT_ONCE = 64
"""Episodes that are played at the same time at most; the others wait for their turn."""
EXAMPLES = 3
"""Failed episodes that an error quotes."""


class Setting(NamedTuple):
    """What does not change over a run."""

    policy: Policy
    config: VeRLConfig
    agent: object
    rewards: Sequence[RewardSpec]


@asynccontextmanager
async def playing(setting: Setting, tasks: AgentTasks) -> AsyncIterator[Episodes]:
    """Open the policy to the agent for as long as a run lasts."""
    async with opened(setting, temperature=setting.config.temperature) as live:
        yield Episodes(setting=setting, tasks=tasks, live=live)


def objective_of(config: VeRLConfig) -> PolicyObjective:
    """Return what an update minimises: a mean over tokens, whose weights `_weighted` decides."""
    return ALGORITHMS[config.algorithm].objective(replace(config, loss_aggregation="token"))


def opened(setting: Setting, *, temperature: float) -> LivePolicy:
    """Return the policy as an agent's model, to be opened in an `async with` block."""
    return LivePolicy(
        setting.policy,
        name=setting.config.model,
        max_rows=EPISODES_AT_ONCE,
        max_new_tokens=setting.config.max_response_length,
        temperature=temperature,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes(Source):
    """Episodes of an agent, which rewards score."""

    setting: Setting
    tasks: AgentTasks
    live: LivePolicy

    @override
    async def draw(self, session: Session, step: int) -> None:
        setting, config = self.setting, self.setting.config
        places = self.tasks.order(step, config.batch_size, seed=config.seed)
        before = self.live.stats
        seeds = [
            [sub_seed(config.seed, "episode", step, place, a) for a in range(config.group_size)]
            for place in range(len(places))
        ]
        chosen = self.tasks.select(places)
        episodes = await play(setting, self.live, chosen.tasks, seeds)
        scores = await rate(setting, chosen, episodes)
        credited = await work(credit_episodes, setting.policy, config, episodes, scores)
        metrics = {
            **reward_metrics(scores),
            **credited.credited.metrics,
            **episode_metrics(episodes),
            **_run_share(before, self.live.stats),
        }
        records = episode_records(chosen.items, episodes, scores, credited.advantages)
        await work(note, session, credited.credited, metrics, records)

    @override
    async def refresh(self) -> None:
        """Serve the new weights from now on."""
        await self.live.refresh()


async def play(
    setting: Setting, live: LivePolicy, tasks: Sequence[object], seeds: Sequence[Sequence[int]]
) -> list[Episode]:
    """Play an episode for each seed of each task; those of a task are adjacent.

    Raises:
        CallbackError: more than `max_failed_share` of them failed; quotes some.
    """
    config = setting.config

    async def one(attempt: tuple[int, int]) -> Episode:
        task, number = attempt
        return await run_episode(
            setting.agent,
            tasks[task],
            live,
            seed=seeds[task][number],
            attempt=number,
            max_turns=config.max_turns,
            max_episode_tokens=config.max_episode_tokens,
            timeout_seconds=config.episode_timeout_seconds,
            models=config.policy_models,
        )

    attempts = [(task, number) for task, row in enumerate(seeds) for number in range(len(row))]
    episodes = await map_bounded(attempts, one, concurrency=EPISODES_AT_ONCE)
    _refuse_too_many_failures(episodes, config)
    return episodes


def _refuse_too_many_failures(episodes: Sequence[Episode], config: VeRLConfig) -> None:
    failed = [episode for episode in episodes if episode.failed]
    if len(failed) <= config.max_failed_share * len(episodes):
        return
    limit = f"no end within {config.episode_timeout_seconds:g} s"
    reasons = {
        "timeout": limit,
        "no_calls": "it called no model that the policy answers (see policy_models)",
    }
    examples = "; ".join(
        f"task {str(episode.task)[:60]!r}: {episode.stop_reason}, "
        f"{reasons.get(episode.stop_reason, episode.error)}"
        for episode in failed[:EXAMPLES]
    )
    raise CallbackError(
        f"{len(failed)} of {len(episodes)} episodes failed, more than max_failed_share="
        f"{config.max_failed_share:g} allows: {examples}"
    )


async def rate(setting: Setting, tasks: AgentTasks, episodes: Sequence[Episode]) -> Scores:
    """Score the episodes, which come in groups; a failed one has no score.

    The total is the weighted sum of the rewards, and of the step rewards as they are.
    """
    config, group = setting.config, len(episodes) // len(tasks)
    kept = [i for i, episode in enumerate(episodes) if not episode.failed]
    scores = Scores([], {spec.name: [] for spec in setting.rewards}, 0)
    if kept and setting.rewards:
        scores = await score(
            [episodes[i].output for i in kept],
            [tasks.items[i // group] for i in kept],
            setting.rewards,
            on_error=config.on_reward_error,
            timeout_seconds=config.reward_timeout_seconds,
            concurrency=config.reward_concurrency,
            known=[
                {"task": episodes[i].task, "result": episodes[i].result, "episode": episodes[i]}
                for i in kept
            ],
        )
    totals = scores.total or [0.0] * len(kept)
    steps = [sum(episodes[i].step_rewards) for i in kept]
    by_name = dict(scores.by_name)
    if any(episodes[i].step_rewards for i in kept):
        by_name["step_rewards"] = list(steps)
    whole = [None if t is None else t + s for t, s in zip(totals, steps, strict=True)]
    return Scores(
        _spread(whole, kept, len(episodes)),
        {name: _spread(values, kept, len(episodes)) for name, values in by_name.items()},
        scores.faults,
    )


def _spread(
    values: Sequence[float | None], places: Sequence[int], length: int
) -> list[float | None]:
    """Put the values at their places, and None everywhere else."""
    at = dict(zip(places, values, strict=True)) if values else {}
    return [at.get(place) for place in range(length)]


class CreditedEpisodes(NamedTuple):
    """The step as a batch, and the advantage of each episode for the record."""

    credited: Credited
    advantages: list[float | None]


def credit_episodes(
    policy: Policy, config: VeRLConfig, episodes: Sequence[Episode], scores: Scores
) -> CreditedEpisodes:
    """Give every sampled token of an episode the advantage of the episode."""
    reward, valid = grouped(scores.total, config.group_size)
    kept = valid.flatten().nonzero()[:, 0].tolist()
    if not kept:
        return CreditedEpisodes(Credited(None, {}, flat=True), [None] * len(episodes))
    streams = [episodes[i].streams for i in kept]
    rows = Rows(
        [
            Rollout(
                token_ids=stream.token_ids,
                mask=stream.mask,
                old_logprob=stream.logprobs,
                prompt_length=stream.prompt_length,
            )
            for of_episode in streams
            for stream in of_episode
        ],
        [number for number, of_episode in enumerate(streams) for _ in of_episode],
    )
    credited = credit_rows(policy, config, rows, reward=reward, valid=valid)
    assert credited.batch is not None
    known = dict(zip(kept, _by_sample(credited.batch, rows.sample), strict=True))
    weighted = replace(credited.batch, advantage=_weighted(credited.batch, config, episodes, kept))
    return CreditedEpisodes(
        credited._replace(batch=weighted), [known.get(i) for i in range(len(episodes))]
    )


def _by_sample(batch: Batch, sample: Sequence[int]) -> list[float]:
    """Return the advantage of each sample, read from its first row."""
    assert batch.advantage is not None
    means = (batch.advantage * batch.mask).sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)
    first = {number: row for row, number in reversed(list(enumerate(sample)))}
    values = means.tolist()
    return [round(values[first[number]], 6) for number in sorted(first)]


def _weighted(
    batch: Batch, config: VeRLConfig, episodes: Sequence[Episode], kept: Sequence[int]
) -> Tensor | None:
    """Scale the advantages so that the mean over tokens becomes the aggregation asked for.

    Every surrogate is linear in a positive factor of the advantage, its clip included, so the
    weight of a token's loss can be put there.
    """
    aggregation, advantage = config.loss_aggregation, batch.advantage
    if aggregation not in ("episode", "constant") or advantage is None:
        return advantage
    longest = config.max_episode_tokens or config.max_turns * config.max_response_length
    shares = token_weights([episodes[i].streams for i in kept], aggregation, max_tokens=longest)
    trained = int(batch.mask.sum())
    weight = torch.zeros(advantage.shape, dtype=advantage.dtype)
    for row, of_row in enumerate(share for of_episode in shares for share in of_episode):
        weight[row, : len(of_row)] = torch.tensor(of_row, dtype=advantage.dtype)
    return advantage * (weight.to(advantage.device) * trained)


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return lengths of the episodes that did not fail, and how many ended for which reason."""
    kept = [episode for episode in episodes if not episode.failed]
    reasons = Counter(episode.stop_reason for episode in episodes)
    metrics = {f"failed/{kind}": float(reasons[kind]) for kind in FAILURES if reasons[kind]}
    metrics["failed"] = 1 - len(kept) / len(episodes)
    for limit in ("max_turns", "max_tokens", "context"):
        if reasons[limit]:
            metrics[f"stopped/{limit}"] = float(reasons[limit])
    if kept:
        metrics["turns"] = fmean(len(episode.turns) for episode in kept)
        metrics["streams"] = fmean(len(episode.streams) for episode in kept)
        metrics["length"] = fmean(episode.sampled_tokens for episode in kept)
        metrics["tokens"] = float(sum(episode.sampled_tokens for episode in kept))
    return metrics


def _run_share(before: LiveStats, after: LiveStats) -> dict[str, float]:
    """Return the share of the prompt tokens that were run; the prefix cache held the others."""
    asked = after.asked_tokens - before.asked_tokens
    return {"prompt_run_share": (after.run_tokens - before.run_tokens) / asked} if asked else {}


async def evaluate(
    setting: Setting, tasks: AgentTasks, *, samples: int, success: float
) -> TrainMetrics:
    """Play the agent on held-out tasks, as `assess` does, and return the numbers."""
    return (await assess(setting, tasks, samples=samples, success=success)).metrics


async def assess(
    setting: Setting, tasks: AgentTasks, *, samples: int, success: float
) -> Assessment:
    """Play the agent on held-out tasks: once and greedily with `samples=0`, else `samples` times.

    Raises:
        CallbackError: too many episodes failed.
        DataError: no episode has a reward.
    """
    config = setting.config
    async with opened(setting, temperature=config.temperature if samples else 0.0) as live:
        seeds = [
            [sub_seed(config.seed, "evaluate", task, a) for a in range(max(1, samples))]
            for task in range(len(tasks))
        ]
        episodes = await play(setting, live, tasks.tasks, seeds)
    scores = await rate(setting, tasks, episodes)
    attempts = attempts_of(tasks.items, [episode.output for episode in episodes], scores)
    return Assessment(
        summarise(scores, episode_metrics(episodes), len(tasks), success=success),
        [a._replace(episode=episode) for a, episode in zip(attempts, episodes, strict=True)],
    )
