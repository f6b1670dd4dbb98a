"""The loop on one machine: sample, score, credit, update; until every prompt has had its turns.

Left out: loading, checks and the lifecycle (`trainer.py`), how rewards become advantages
(`credit.py`), and every formula (`rl/`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from statistics import fmean, pstdev
from typing import NamedTuple

from orbiter.train.engine.batch import Batch, minibatches
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.progress import Progress
from orbiter.train.engine.rollout import Rollout, sample
from orbiter.train.engine.session import Session, work
from orbiter.train.engine.tasks import Tasks
from orbiter.train.errors import TrainingError
from orbiter.train.seeding import sub_seed
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.credit import Credited, credit, make_objective
from orbiter.train.verl.reward import RewardSpec, Scores, score
from orbiter.train.verl.samples import as_records

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 256
"""Samples drawn between two looks at whether an evaluation was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that a run by reward needs."""

    config: VeRLConfig
    rewards: Sequence[RewardSpec]
    tasks: Tasks
    session: Session
    progress: Progress
    validate: Callable[[int], Awaitable[Mapping[str, float]]]
    """Given the number of finished steps: the metrics of a validation, or none."""


async def fit(job: Job) -> None:
    """Train until `epochs` passes are done, or until there is nothing left to learn.

    Raises:
        TrainingError: the run diverged, or never had anything to learn from.
        CallbackError: a reward failed, and `on_reward_error` is "raise".
    """
    config, session, tasks = job.config, job.session, job.tasks
    objective = make_objective(config)
    for step in range(session.position.step, session.steps):
        if session.batch is None:  # else a resumed run stands inside a step, its samples in hand
            asked = tasks.select(tasks.order(step, config.batch_size, seed=config.seed))
            rollouts = await work(
                sample,
                session.policy,
                asked.prompts,
                n=config.group_size,
                max_new_tokens=config.max_response_length,
                temperature=config.temperature,
                seed=sub_seed(config.seed, "sample", step),
            )
            scores = await ask_rewards(job.config, job.rewards, asked.items, rollouts)
            credited = await work(credit, session.policy, config, rollouts, scores)
            await work(note, session, Drawn(asked.items, rollouts, scores), credited)
        updates = updates_left(session, config, step)
        while (minibatch := await work(next, updates, None)) is not None:
            if session.save_due:
                await work(session.save)
            await work(session.take, minibatch, objective, temperature=config.temperature)
        row = session.finish_step(await job.validate(step + 1))
        job.progress.step(step + 1, row)
        check_gradient(session, row, config.max_flat_steps)
        if session.save_due:
            await work(session.save)
        if session.position.flat_steps >= config.max_flat_steps:
            stop_without_signal(session, row)
            break
        if session.out_of_time:
            break


async def ask_rewards(
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    items: Sequence[TrajectoryItem],
    rollouts: Sequence[Rollout],
) -> Scores:
    """Score the samples, which come in groups, one group an item."""
    group_size = len(rollouts) // len(items)
    return await score(
        [rollout.text for rollout in rollouts],
        list(chain.from_iterable(repeat(item, group_size) for item in items)),
        rewards,
        on_error=config.on_reward_error,
        timeout_seconds=config.reward_timeout_seconds,
        concurrency=config.reward_concurrency,
    )


class Drawn(NamedTuple):
    """The samples of a step and what they are worth; they come in groups, one group an item."""

    items: Sequence[TrajectoryItem]
    rollouts: Sequence[Rollout]
    scores: Scores


def note(session: Session, drawn: Drawn, credited: Credited) -> None:
    """Put the credited samples into the session, with what there is to say about them."""
    position = session.position
    session.batch = credited.batch
    position.flat_steps = position.flat_steps + 1 if credited.flat else 0
    position.has_taught |= not credited.flat
    position.row = {
        **reward_metrics(drawn.scores),
        **credited.metrics,
        **length_metrics(drawn.rollouts),
    }
    position.samples = as_records(*drawn, credited.batch)


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Tokens drawn, their mean a sample, and the share of samples that ran out of room."""
    lengths = [sum(rollout.mask) for rollout in rollouts]
    return {
        "length": fmean(lengths),
        "cut_off": fmean(rollout.finish_reason == "length" for rollout in rollouts),
        "tokens": float(sum(lengths)),
    }


def reward_metrics(scores: Scores) -> dict[str, float]:
    """Mean and spread of the total, mean of each reward, and the faults; skipped ones left out."""
    known = [total for total in scores.total if total is not None]
    metrics: dict[str, float] = {"reward_faults": float(scores.faults)}
    if known:
        metrics |= {"reward": fmean(known), "reward_std": pstdev(known)}
    for name, answers in scores.by_name.items():
        given = [answer for answer in answers if answer is not None]
        if given:
            metrics[f"reward/{name}"] = fmean(given)
    return metrics


def updates_left(session: Session, config: VeRLConfig, step: int) -> Iterator[Batch]:
    """Yield the minibatches of the step that have not been taken yet, pass after pass.

    Ends early once an update has seen the policy `target_kl` away from the one that sampled.
    """
    batch, position = session.batch, session.position
    if batch is None:
        return
    size = config.minibatch_size or len(batch.length)
    place = 0
    for epoch in range(config.ppo_epochs):
        seed = sub_seed(config.seed, "minibatches", step, epoch)
        for minibatch in minibatches(batch, size, seed=seed):
            moved = position.seen[-1]["approx_kl"] if position.seen else 0.0
            if config.target_kl is not None and moved > config.target_kl:
                return
            place += 1
            if place > position.within:
                yield minibatch


def check_gradient(session: Session, row: Mapping[str, float], patience: int) -> None:
    """Notice a model that no longer moves although its samples are worth different things.

    Raises:
        TrainingError: the gradient has been exactly zero for `patience` such steps.
    """
    position = session.position
    still = position.flat_steps == 0 and row.get("grad_norm") == 0
    position.still_steps = position.still_steps + 1 if still else 0
    if position.still_steps >= patience:
        raise TrainingError(
            f"the run has diverged: for {patience} steps the gradient was zero though samples of a "
            f"prompt were worth different things, so the weights of step {position.step} are too "
            "large for the arithmetic; lower learning_rate"
        )


def stop_without_signal(session: Session, row: Mapping[str, float]) -> None:
    """End a run whose samples have all been worth the same for too long.

    Raises:
        TrainingError: they never were worth anything else, so nothing has been learned.
    """
    steps = session.position.flat_steps
    worth = f"{row['reward']:.4g}" if "reward" in row else "nothing (every one was skipped)"
    if session.position.has_taught:
        log.warning(
            "stopped at step %d: in the last %d steps every sample was worth the same (%s), so "
            "there is nothing left to learn from these rewards",
            *(session.position.step, steps, worth),
        )
        return
    raise TrainingError(
        f"nothing can be learned: in all {steps} steps so far every sample of a prompt was worth "
        f"the same (lately {worth}), so every advantage is zero. Make the reward tell better "
        "from worse (partial credit), sample more (group_size, temperature), begin with easier "
        "prompts or with SFT; max_flat_steps sets how long this is watched"
    )


class Judged(NamedTuple):
    """Outputs on held-out tasks and what they are worth; output i belongs to item i // samples."""

    rollouts: list[Rollout]
    scores: Scores


async def judge(
    policy: Policy,
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    tasks: Tasks,
    *,
    samples: int,
) -> Judged:
    """Answer every task, greedily where `samples` is 0 and else so many times, and score it."""
    n = max(1, samples)
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
            seed=sub_seed(config.seed, "evaluate", first),
        )
    return Judged(rollouts, await ask_rewards(config, rewards, tasks.items, rollouts))
