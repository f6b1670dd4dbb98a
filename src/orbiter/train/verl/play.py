"""Play episodes of an agent and score them: with retries, failures and a journal.

Every episode is scored as soon as it ends, and only then counts as finished.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from orbiter.train.agents.episode import FAILURES, SCORED_ERROR, STOPPED, Episode
from orbiter.train.agents.runner import AgentModel, run_episode
from orbiter.train.callback import map_bounded
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import CallbackError
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.live import LivePolicy
from orbiter.train.trainer import TrainMetrics
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.evaluate import Assessment, ScoredAttempt, attempts_of, summarise
from orbiter.train.verl.guard import call_metrics
from orbiter.train.verl.journal import EpisodeAttempt, EpisodeJournal
from orbiter.train.verl.judged import grouped
from orbiter.train.verl.reward import RewardSpec, SampleScores, score
from orbiter.train.verl.tasks import AgentTasks

EXAMPLES = 3
"""The number of failed episodes that an error quotes."""


class PlaySetting(NamedTuple):
    """The parts of a run that do not change."""

    policy: Policy
    config: VeRLConfig
    agent: object
    rewards: Sequence[RewardSpec]


def open_live(setting: PlaySetting, *, temperature: float) -> LivePolicy:
    """Return an unopened live policy that serves as the agent's model."""
    return LivePolicy(
        setting.policy,
        name=setting.config.model,
        max_rows=setting.config.episode_concurrency,
        max_new_tokens=setting.config.max_response_length,
        temperature=temperature,
    )


class ScoredEpisodes(NamedTuple):
    """Episodes with their scores; those of a task are adjacent."""

    episodes: list[Episode]
    scores: SampleScores


async def play(
    setting: PlaySetting,
    live: LivePolicy,
    tasks: AgentTasks,
    seeds: Sequence[Sequence[int]],
    *,
    journal: EpisodeJournal | None = None,
    offset: int = 0,
) -> ScoredEpisodes:
    """Play and score an episode for each seed of each task; those of a task are adjacent.

    Args:
        setting: Policy, config, agent and rewards.
        live: The policy that answers, open.
        tasks: The agent's tasks.
        seeds: For each task, one for each episode.
        journal: Holds episodes that finished before an interruption, and gets those that finish.
        offset: Number of the first task in the step, for the journal.

    Raises:
        CallbackError: more than `max_failed_share` of them failed; quotes some.
    """
    # Apart from the episodes: a slow judge must not keep the policy from playing.
    rating = asyncio.Semaphore(setting.config.reward_concurrency)

    async def one(attempt: tuple[int, int]) -> tuple[Episode, SampleScores | None]:
        position, number = attempt
        key = EpisodeAttempt(offset + position, number, seeds[position][number])
        # Found by its seed too, so an episode of another step or of other settings is never taken.
        known = journal.find(tasks.tasks[position], key) if journal else None
        if known is not None:
            return known
        episode = await play_one(setting.config, setting.agent, live, tasks.tasks[position], key)
        async with rating:
            scores = await rate(
                setting.config, setting.rewards, tasks.items[position], episode, offset + position
            )
        # A failed episode is not kept: it is played again after a resume.
        if journal is not None and scores is not None:
            # In a thread, since encoding and writing a long episode would block the other ones.
            await asyncio.to_thread(journal.add, key, episode, scores)
        return episode, scores

    attempts = [(task, number) for task, row in enumerate(seeds) for number in range(len(row))]
    played = await map_bounded(attempts, one, concurrency=setting.config.episode_concurrency)
    _refuse_too_many_failures([episode for episode, _ in played], setting.config)
    alone = together(played)
    # A relative judge needs all episodes of a task, so it is asked only when all of them have
    # ended.
    if not any(spec.relative for spec in setting.rewards):
        return alone
    return await _compared(setting, tasks, alone, [len(row) for row in seeds])


async def _compared(
    setting: PlaySetting, tasks: AgentTasks, played: ScoredEpisodes, sizes: Sequence[int]
) -> ScoredEpisodes:
    """Add the scores of relative judges, which compare the episodes of a task that did not fail.

    The judges' answers are kept in the run's folder, so a resumed run gets the same scores without
    asking again.
    """
    relative = [spec for spec in setting.rewards if spec.relative]
    # A failed episode says nothing of the policy, and one whose agent raised has no result.
    rows = [row for row, episode in enumerate(played.episodes) if _is_rated(episode)]
    items = [item for item, size in zip(tasks.items, sizes, strict=True) for _ in range(size)]
    groups = grouped([_is_rated(episode) for episode in played.episodes], sizes)
    scores = await _score(
        setting.config,
        relative,
        [played.episodes[row] for row in rows],
        [items[row] for row in rows],
        group_sizes=[sum(group) for group in groups],
    )
    before, by_name = played.scores, dict(played.scores.by_name)
    total: list[float | None] = list(before.total)
    for position, row in enumerate(rows):
        known, added = before.total[row], scores.total[position]
        # Already weighted on both sides; None means that a reward skipped the sample.
        total[row] = None if known is None or added is None else known + added
    for name, values in scores.by_name.items():
        by_row = dict(zip(rows, values, strict=True))
        # None again for the failed ones, so that each list has one entry for each episode.
        by_name[name] = [by_row.get(row) for row in range(len(played.episodes))]
    faults = before.faults + scores.faults
    left_out = dict(Counter(before.left_out) + Counter(scores.left_out))
    return played._replace(
        scores=SampleScores(total, by_name, faults, left_out, scores.order_effect)
    )


async def play_one(
    config: VeRLConfig, agent: object, live: AgentModel, task: object, key: EpisodeAttempt
) -> Episode:
    """Play an episode, again if it fails and `episode_retries` is set.

    With `on_agent_error` as a number, an episode whose agent raised does not fail. A retry has the
    same seed. With another seed, episodes whose samples make the agent fail would be replaced by
    others, which would bias the gradient.
    """
    retries = 0
    while True:
        episode = await run_episode(
            agent,
            task,
            live,
            seed=key.seed,
            attempt=key.number,
            max_turns=config.max_turns,
            max_episode_tokens=config.max_episode_tokens,
            timeout_seconds=config.episode_timeout_seconds,
            models=config.policy_models,
        )
        if _scores_error(config, episode):
            episode = replace(episode, stop_reason=SCORED_ERROR)
        if not episode.failed or retries == config.episode_retries:
            return replace(episode, retries=retries)
        retries += 1


def _scores_error(config: VeRLConfig, episode: Episode) -> bool:
    """Return whether the agent raised, and such an episode gets a reward.

    Without an answer the policy had no part in it, and there is nothing to train on.
    """
    raised = episode.stop_reason == "agent_error" and bool(episode.turns)
    return raised and config.on_agent_error != "exclude"


def _refuse_too_many_failures(episodes: Sequence[Episode], config: VeRLConfig) -> None:
    failed = [describe_failure(episode, config) for episode in episodes if episode.failed]
    refuse_failures(failed, len(episodes), config.max_failed_share)


def describe_failure(episode: Episode, config: VeRLConfig) -> str:
    """Return the task of a failed episode, and why it failed."""
    reasons = {
        "timeout": f"no end within {config.episode_timeout_seconds:g} s",
    }
    reason = reasons.get(episode.stop_reason, episode.error)
    return f"task {str(episode.task)[:60]!r}: {episode.stop_reason}, {reason}"


def refuse_failures(failed: Sequence[str], episodes: int, max_failed_share: float) -> None:
    """Refuse a step of which too many episodes failed.

    Raises:
        CallbackError: it has more of them than `max_failed_share`; quotes some.
    """
    if len(failed) > max_failed_share * episodes:
        raise CallbackError(
            f"{len(failed)} of {episodes} episodes failed, more than max_failed_share="
            # The attempts at a task usually fail alike, and say so once.
            f"{max_failed_share:g} allows: {'; '.join([*dict.fromkeys(failed)][:EXAMPLES])}"
        )


def _is_rated(episode: Episode) -> bool:
    """Return whether the rewards are asked about an episode: its agent returned a result."""
    return not episode.failed and episode.stop_reason != SCORED_ERROR


async def rate(
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    item: TrajectoryItem,
    episode: Episode,
    position: int,
) -> SampleScores | None:
    """Compute the rewards of one episode; a failed one is not scored."""
    if episode.failed:
        return None
    absolute = [spec for spec in rewards if not spec.relative]
    if not _is_rated(episode):
        # No function is asked: the agent returned nothing that it could judge.
        nothing: list[float | None] = [None]
        by_name = {spec.name: nothing for spec in absolute}
        return SampleScores([float(config.on_agent_error)], by_name, faults=0)
    return await _score(config, absolute, [episode], [item], first_index=position)


async def _score(
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    episodes: Sequence[Episode],
    items: Sequence[TrajectoryItem],
    *,
    first_index: int = 0,
    group_sizes: Sequence[int] | None = None,
) -> SampleScores:
    return await score(
        [episode.output for episode in episodes],
        items,
        rewards,
        on_error=config.on_reward_error,
        timeout_seconds=config.reward_timeout_seconds,
        concurrency=config.reward_concurrency,
        first_index=first_index,
        known=[{"task": e.task, "result": e.result, "episode": e} for e in episodes],
        group_sizes=group_sizes,
    )


def together(played: Sequence[tuple[Episode, SampleScores | None]]) -> ScoredEpisodes:
    """Join the scores of single episodes.

    The total is the weighted sum of the rewards, and the unweighted step rewards.
    """
    names = dict.fromkeys(name for _, each in played if each for name in each.by_name)
    by_name = {name: [each and each.by_name[name][0] for _, each in played] for name in names}
    # Only where there are any, or every run would have a metric that is always zero.
    if any(episode.step_rewards for episode, each in played if each):
        by_name["step_rewards"] = [each and sum(e.step_rewards) for e, each in played]
    totals = [
        None if each is None or each.total[0] is None else each.total[0] + sum(e.step_rewards)
        for e, each in played
    ]
    faults = sum(each.faults for _, each in played if each)
    left_out: Counter[str] = sum((Counter(e.left_out) for _, e in played if e), Counter())
    return ScoredEpisodes(
        [episode for episode, _ in played], SampleScores(totals, by_name, faults, left_out)
    )


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return lengths of episodes that did not fail, and numbers of episodes by stop reason."""
    kept = [episode for episode in episodes if not episode.failed]
    reasons = Counter(episode.stop_reason for episode in episodes)
    metrics = {f"failed/{kind}": float(reasons[kind]) for kind in FAILURES if reasons[kind]}
    # A share; `failed/<kind>` above are counts.
    metrics["failed"] = 1 - len(kept) / len(episodes)
    if any(episode.retries for episode in episodes):
        metrics["retries"] = float(sum(episode.retries for episode in episodes))
    for kind in STOPPED:
        if reasons[kind]:
            metrics[f"stopped/{kind}"] = float(reasons[kind])
    if kept:
        metrics["turns"] = fmean(len(episode.turns) for episode in kept)
        metrics |= call_metrics(kept)
        metrics["streams"] = fmean(len(episode.streams) for episode in kept)
        metrics["length"] = fmean(episode.sampled_tokens for episode in kept)
        metrics["tokens"] = float(sum(episode.sampled_tokens for episode in kept))
    return metrics


async def evaluate(
    setting: PlaySetting, tasks: AgentTasks, *, samples: int, success: float
) -> TrainMetrics:
    """Play the agent on held-out tasks, as `assess` does, and return the numbers."""
    return (await assess(setting, tasks, samples=samples, success=success)).metrics


async def assess(
    setting: PlaySetting, tasks: AgentTasks, *, samples: int, success: float
) -> Assessment:
    """Play the agent on held-out tasks: once and greedily with `samples=0`, else `samples` times.

    Raises:
        CallbackError: too many episodes failed.
        DataError: no episode has a reward.
    """
    config = setting.config
    async with open_live(setting, temperature=config.temperature if samples else 0.0) as live:
        seeds = [
            # The same seeds at every evaluation, so that two of them differ by the policy alone.
            [sub_seed(config.seed, "evaluate", task, a) for a in range(max(1, samples))]
            for task in range(len(tasks))
        ]
        played = await play(setting, live, tasks, seeds)
    metrics = summarise(
        played.scores, episode_metrics(played.episodes), len(tasks), success=success
    )
    return Assessment(metrics, attempts_in(tasks, played))


def attempts_in(tasks: AgentTasks, played: ScoredEpisodes) -> list[ScoredAttempt]:
    """Return the episodes one by one, each with its task and its scores."""
    outputs = [episode.output for episode in played.episodes]
    attempts = attempts_of(tasks.items, outputs, played.scores)
    return [
        attempt._replace(episode=episode)
        for attempt, episode in zip(attempts, played.episodes, strict=True)
    ]
