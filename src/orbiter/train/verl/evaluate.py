"""Measure a policy on held-out tasks: sample answers, score them, and summarise the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from statistics import fmean, pstdev
from typing import NamedTuple

from orbiter.train.agents.episode import Episode
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.progress import Report, shifted
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.sample import sample
from orbiter.train.engine.tasks import Tasks
from orbiter.train.engine.thread import work
from orbiter.train.engine.trainer import as_metrics
from orbiter.train.errors import DataError
from orbiter.train.evaluation import mean_interval, pass_at_k
from orbiter.train.judging.base import BaseJudge
from orbiter.train.judging.calibration import uncalibrated
from orbiter.train.seeding import sub_seed
from orbiter.train.trainer import TrainMetrics
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import RewardSpec, SampleScores, score

ROWS_AT_ONCE = 256
"""Samples drawn before the next check whether an evaluation was cancelled."""


class ScoredAttempt(NamedTuple):
    """One answer to an item, or one episode of an agent, with its score."""

    item: TrajectoryItem
    """The item, or the agent's task described as one."""
    output: str
    reward: float | None
    """The total; None for a failed episode, or if a failed reward was skipped."""
    rewards: dict[str, float | None]
    """Each reward by its name."""
    episode: Episode | None = None
    """The whole episode, with an agent."""


class Assessment(NamedTuple):
    """The result of `VeRLTrainer.assess`."""

    metrics: TrainMetrics
    attempts: list[ScoredAttempt]
    """In the order of the items; the attempts at one item are adjacent."""


class Judged(NamedTuple):
    """Outputs on held-out tasks with their scores; output i belongs to item i // samples."""

    rollouts: list[Rollout]
    scores: SampleScores


async def judge(
    policy: Policy,
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    tasks: Tasks,
    *,
    samples: int,
    report: Report | None = None,
) -> Judged:
    """Answer every task and score the answers: once and greedily with `samples=0`, else `samples`
    times at the config's temperature. `report` receives the progress.
    """
    n = max(1, samples)
    # Cut by tasks, so the samples of a task are drawn together and its prompt runs once.
    at_once = max(1, ROWS_AT_ONCE // n)
    rollouts: list[Rollout] = []
    for first in range(0, len(tasks), at_once):
        rollouts += await work(
            sample,
            policy,
            tasks.prompts[first : first + at_once],
            n=n,
            max_new_tokens=config.max_response_length,
            temperature=config.temperature if samples else 0.0,
            # One for each part, or all parts would draw alike.
            seed=sub_seed(config.seed, "evaluate", first),
            report=shifted(report, first * n, config.max_response_length),
        )
    return Judged(rollouts, await ask_rewards(config, rewards, tasks.items, rollouts))


async def ask_rewards(
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    items: Sequence[TrajectoryItem],
    rollouts: Sequence[Rollout],
) -> SampleScores:
    """Score the samples, which come in groups, one group for each item."""
    group_size = len(rollouts) // len(items)
    return await score(
        [rollout.raw_text if config.keep_special_tokens else rollout.text for rollout in rollouts],
        list(chain.from_iterable(repeat(item, group_size) for item in items)),
        rewards,
        on_error=config.on_reward_error,
        timeout_seconds=config.reward_timeout_seconds,
        concurrency=config.reward_concurrency,
        # For rewards that look at special tokens, whatever keep_special_tokens says.
        known=[{"raw_output": rollout.raw_text} for rollout in rollouts],
        group_sizes=[group_size] * len(items),
    )


def attempts_of(
    items: Sequence[TrajectoryItem], outputs: Sequence[str], scores: SampleScores
) -> list[ScoredAttempt]:
    """Return the attempts; the samples come in groups, one group for each item."""
    group_size = len(outputs) // len(items)
    return [
        ScoredAttempt(
            items[row // group_size],
            output,
            scores.total[row],
            {name: values[row] for name, values in scores.by_name.items()},
        )
        for row, output in enumerate(outputs)
    ]


def summary(judged: Judged, tasks: int, *, success: float) -> TrainMetrics:
    """Return an evaluation in numbers, as `summarise` does."""
    return summarise(judged.scores, length_metrics(judged.rollouts), tasks, success=success)


def summarise(
    scores: SampleScores, beside: Mapping[str, float], tasks: int, *, success: float
) -> TrainMetrics:
    """Return an evaluation in numbers; the interval is over tasks, not over their samples.

    Raises:
        DataError: no sample has a reward.
    """
    total = scores.total
    n = len(total) // tasks
    groups = [[t for t in total[at : at + n] if t is not None] for at in range(0, len(total), n)]
    # A task without any scored sample is left out, not counted as 0.
    known = [group for group in groups if group]
    if not known:
        raise DataError("nothing was scored: every sample failed, or the rewards failed on it")
    interval = mean_interval([fmean(group) for group in known])
    measured = reward_metrics(scores) | dict(beside)
    for k in sorted({1, n} if n > 1 else set()):
        complete = [group for group in known if len(group) == n]
        passed = [pass_at_k(n, sum(t >= success for t in group), k) for group in complete]
        if passed:
            measured[f"pass@{k}"] = fmean(passed)
    return as_metrics(measured | {"reward": interval.mean}, reward_interval=interval)


def with_corrections(
    assessment: Assessment, judges: Mapping[str, BaseJudge], *, samples: int
) -> Assessment:
    """Add what a calibrated judge's scores are worth, and a note about one that is not calibrated.

    Attempts at the same task are not independent, so only the first at each task counts.
    """
    measured: dict[str, float] = {}
    notes = uncalibrated(judges)
    for name, judge in judges.items():
        given = [attempt.rewards.get(name) for attempt in assessment.attempts[::samples]]
        scores = [score for score in given if score is not None]
        if judge.calibration is None or not scores:
            continue
        try:
            mean, low, high, _ = judge.calibration.corrected(scores)
        except DataError as error:
            notes.append(f"the scores of judge {name!r} cannot be corrected: {error}")
            continue
        corrected = {"": mean, "_low": low, "_high": high}
        measured |= {f"corrected/{name}{end}": value for end, value in corrected.items()}
    metrics = assessment.metrics
    extra = {**metrics.extra, **measured}
    return assessment._replace(metrics=replace(metrics, extra=extra, notes=tuple(notes)))


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the sampled tokens, their mean per sample, and the share of samples cut off."""
    lengths = [sum(rollout.mask) for rollout in rollouts]
    return {
        "length": fmean(lengths),
        "cut_off": fmean(rollout.finish_reason == "length" for rollout in rollouts),
        "tokens": float(sum(lengths)),
    }


def reward_metrics(scores: SampleScores) -> dict[str, float]:
    """Return mean and spread of the total, the mean of each reward, and the number of faults.

    Of judges also the samples without a verdict by cause, and the effect of the order shown.
    Skipped samples count in none of the means.
    """
    known = [total for total in scores.total if total is not None]
    metrics: dict[str, float] = {"reward_faults": float(scores.faults)}
    metrics |= {f"left_out/{cause}": float(count) for cause, count in scores.left_out.items()}
    metrics |= {f"order_effect/{name}": effect for name, effect in scores.order_effect.items()}
    if known:
        metrics |= {"reward": fmean(known), "reward_std": pstdev(known)}
    for name, answers in scores.by_name.items():
        numbers = [answer for answer in answers if answer is not None]
        if numbers:
            metrics[f"reward/{name}"] = fmean(numbers)
    return metrics
