"""Play a few episodes before a run, and estimate the cost of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from orbiter.train.agents.episode import Episode
from orbiter.train.engine.estimate import reading_seconds, step_seconds
from orbiter.train.engine.memory import GIB, memory_estimate
from orbiter.train.engine.plan import TrainPlan
from orbiter.train.engine.thread import work
from orbiter.train.errors import CallbackError
from orbiter.train.seeding import sub_seed
from orbiter.train.verl.evaluate import ScoredAttempt
from orbiter.train.verl.play import PlaySetting, attempts_in, open_live, play
from orbiter.train.verl.tasks import AgentTasks

EPISODES = 2
"""Tasks that are played to estimate a run."""


class StepCost(NamedTuple):
    """The cost of a step, if its episodes are like those played."""

    episodes: int
    sampled_tokens: int
    """Tokens that the policy draws in a step."""
    trained_tokens: int
    """Tokens of all streams, context included, which an update reads."""
    longest_stream: int
    """Tokens of the longest stream, context included."""
    seconds: float
    """Within a factor of about three; the agent's own waiting is included as it was measured."""
    memory_bytes: int
    """At the peak."""


class Rehearsal(NamedTuple):
    """The episodes that were played, and the cost of a step."""

    attempts: list[ScoredAttempt]
    cost: StepCost | None
    """None if every episode failed."""


async def rehearse(setting: PlaySetting, tasks: AgentTasks) -> Rehearsal:
    """Play one episode of each task, as a step of a run would."""
    config = replace(setting.config, max_failed_share=1.0)  # a failed one is shown, not raised
    # Other seeds than the run's: a rehearsal does not play the same episodes.
    seeds = [[sub_seed(config.seed, "rehearse", task)] for task in range(len(tasks))]
    async with open_live(setting, temperature=config.temperature) as live:
        played = await play(setting._replace(config=config), live, tasks, seeds)
    kept = [episode for episode in played.episodes if not episode.failed]
    return Rehearsal(attempts_in(tasks, played), await work(_cost, setting, kept) if kept else None)


async def plan_agent(
    setting: PlaySetting, tasks: AgentTasks, *, held_out: int, method: str
) -> TrainPlan:
    """Play an episode of each of the first tasks, and estimate a whole run from them.

    Raises:
        CallbackError: every episode failed; the message quotes them.
    """
    config = setting.config
    chosen = tasks.select(range(min(EPISODES, len(tasks))))
    rehearsal = await rehearse(setting, chosen)
    cost = rehearsal.cost
    if cost is None:
        played = [attempt.episode for attempt in rehearsal.attempts if attempt.episode]
        raise CallbackError(
            f"plan() played {len(played)} episodes, and all failed: "
            + "; ".join(f"{each.stop_reason}, {each.error or 'no error'}" for each in played)
        )
    steps = config.epochs * tasks.steps_per_epoch(config.batch_size)
    return TrainPlan(
        method=method,
        model=config.model,
        items=len(tasks),
        held_out=held_out,
        steps=steps,
        updates=steps * config.updates_per_step,
        tokens=steps * cost.trained_tokens,
        longest_item=cost.longest_stream,
        memory=f"about {cost.memory_bytes / GIB:.1f} GiB at the peak",
        memory_bytes=cost.memory_bytes,
        seconds=steps * cost.seconds,
        computes=setting.policy.computes,
    )


def _cost(setting: PlaySetting, episodes: Sequence[Episode]) -> StepCost:
    config, policy = setting.config, setting.policy
    count = config.batch_size * config.group_size
    sampled = fmean(episode.sampled_tokens for episode in episodes)
    read = fmean(sum(len(s.token_ids) for s in episode.streams) for episode in episodes)
    longest = max(len(s.token_ids) for episode in episodes for s in episode.streams)
    # Episodes beyond `episode_concurrency` wait, so their time adds up wave by wave.
    waves = math.ceil(count / config.episode_concurrency)
    outside = fmean(
        # Turns may overlap in agents that ask in parallel, so their sum may exceed the episode.
        max(0.0, episode.seconds - sum(turn.ended - turn.started for turn in episode.turns))
        for episode in episodes
    )
    memory = memory_estimate(
        policy,
        prompts=config.batch_size,
        n=config.group_size,
        # The whole stream counts as sampled, the most that a turn can have to store.
        prompt_tokens=1,
        new_tokens=max(1, longest - 1),
        micro_batch_tokens=config.micro_batch_tokens,
        teacher=None if config.distills_sampled else policy.teacher,
    )
    seconds = step_seconds(
        policy,
        # `read` holds all tokens; those sampled are counted apart, since they are slower.
        read=round(count * (read - sampled)),
        sampled=round(count * sampled),
        draws=round(waves * sampled),
        passes=config.ppo_epochs,
    )
    if policy.teacher is not None:
        seconds += reading_seconds(policy.teacher, round(count * read), config.ppo_epochs)
    return StepCost(
        episodes=count,
        sampled_tokens=round(count * sampled),
        trained_tokens=round(count * read),
        longest_stream=longest,
        seconds=seconds + waves * outside,
        memory_bytes=memory.total,
    )
