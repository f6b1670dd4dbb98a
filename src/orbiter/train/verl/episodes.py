"""Training on whole episodes of an agent: draw a step's episodes, give every token its advantage.

The unit is the episode. A group holds the attempts at one task; the advantage of an episode, or of
one of its turns, reaches every token that the policy sampled in it, in any stream. Episodes that
failed for a reason unrelated to the policy are left out of the batch and of all means. Playing them
is in `play.py`, the loop in `local.py`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from typing_extensions import override

from orbiter.train.agents.episode import Episode
from orbiter.train.agents.streams import shared_beginnings, token_weights
from orbiter.train.engine.batch import Batch
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.session import Session
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import Objective
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.live import LivePolicy, LiveStats
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.algorithms.base import Credited, Turns
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.credit import TrainingRows, credit_rows, grouped
from orbiter.train.verl.evaluate import reward_metrics
from orbiter.train.verl.extra_groups import (
    flat_groups,
    swapped,
    swapped_scores,
    without_flat,
)
from orbiter.train.verl.guard import signs, watch
from orbiter.train.verl.journal import EpisodeJournal, open_journal
from orbiter.train.verl.local import SampleSource, note
from orbiter.train.verl.play import PlaySetting, episode_metrics, open_live, play
from orbiter.train.verl.pools import choose, pool_metrics, update_pools
from orbiter.train.verl.reward import SampleScores, weights_of
from orbiter.train.verl.samples import episode_records
from orbiter.train.verl.tasks import AgentTasks
from orbiter.train.verl.teaching import Teach, with_teacher, without_reward


@asynccontextmanager
async def playing(
    setting: PlaySetting, tasks: AgentTasks, teach: Teach | None = None
) -> AsyncIterator[Episodes]:
    """Open the policy to the agent for as long as a run lasts."""
    async with open_live(setting, temperature=setting.config.temperature) as live:
        yield Episodes(setting=setting, tasks=tasks, live=live, teach=teach)


def objective_of(config: VeRLConfig) -> Objective:
    """Return the objective of an update: a mean over tokens, with the weights of `_weighted`."""
    # One mean over tokens in the loss; the weights already contain every other aggregation.
    return ALGORITHMS[config.algorithm].objective(replace(config, loss_aggregation="token"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes(SampleSource):
    """Episodes of an agent, scored by rewards."""

    setting: PlaySetting
    tasks: AgentTasks
    live: LivePolicy
    teach: Teach | None = None
    """The teacher's log probabilities of sampled tokens; None unless distillation needs them."""

    @override
    async def draw(self, session: Session, step: int) -> None:
        setting, config = self.setting, self.setting.config
        # Taken as a difference, since the counters run for as long as the server lives.
        before = self.live.stats
        journal = await open_journal(session, step)
        try:
            turn = choose(config, session.position, step, len(self.tasks))
            drawn = await self._play(step, turn.places, 0, journal)

            async def more(places: list[int], before: int) -> DrawnGroups:
                return await self._play(step, places, len(drawn.places) + before, journal)

            chosen, extra = await without_flat(
                *(config, session.position, step, drawn, more),
                first=drawn.places,
                of=len(self.tasks),
            )
        finally:
            if journal is not None:
                journal.close()
        tasks = self.tasks.select(chosen.places)
        credited = await work(
            credit_episodes,
            setting.policy,
            config,
            chosen.episodes,
            # The metrics below use the scores before truncation.
            with_truncation(chosen.scores, chosen.episodes, config.on_truncation),
        )
        taught = await with_teacher(self.teach, credited.credited)
        # The position changes only once the whole step has been played and credited.
        session.position.cursor = turn.cursor
        update_pools(config, session.position, drawn.places, drawn.scores.total)
        metrics = {
            **pool_metrics(config, session.position, turn, len(self.tasks)),
            **reward_metrics(drawn.scores),
            **credited.credited.metrics,
            **episode_metrics(drawn.episodes),
            **extra,
            **_run_share(before, self.live.stats),
        }
        if not ALGORITHMS[config.algorithm].needs_reward and not drawn.scores.by_name:
            metrics = without_reward(metrics)
        hints = signs(
            [episode.output for episode in drawn.episodes],
            [episode.sampled_tokens for episode in drawn.episodes],
            drawn.scores.total,
            config.group_size,
        )
        watch(session.position, metrics | hints, weights_of(setting.rewards))
        records = episode_records(
            tasks.items, chosen.episodes, chosen.scores, credited.advantages, credited.by_turn
        )
        await work(note, session, taught, metrics, records)
        # All answers of the step are drawn; the update has their memory until `refresh`.
        await self.live.release()

    async def _play(
        self, step: int, places: Sequence[int], offset: int, journal: EpisodeJournal | None
    ) -> DrawnGroups:
        """Play a group for each of these tasks, which are the step's from number `offset` on."""
        config = self.setting.config
        seeds = [
            [
                # The seed names step, group and attempt, so a journal's episode can be
                # recognised.
                sub_seed(config.seed, "episode", step, offset + index, attempt)
                for attempt in range(config.group_size)
            ]
            for index in range(len(places))
        ]
        tasks = self.tasks.select(places)
        # `offset` keeps extra groups apart from the step's own in the journal.
        played = await play(self.setting, self.live, tasks, seeds, journal=journal, offset=offset)
        return DrawnGroups(list(places), *played)

    @override
    async def refresh(self) -> None:
        """Load the new weights for the next episodes."""
        await self.live.refresh()


class DrawnGroups(NamedTuple):
    """The groups of a step."""

    places: list[int]
    """The task of each group, by its number among all tasks."""
    episodes: list[Episode]
    scores: SampleScores

    def flat(self, config: VeRLConfig) -> list[int]:
        """Return the groups whose rewards, with `on_truncation` applied, do not differ."""
        scores = with_truncation(self.scores, self.episodes, config.on_truncation)
        return flat_groups(scores.total, config.group_size)

    def replaced(self, group: int, by: DrawnGroups, other: int, *, size: int) -> DrawnGroups:
        """Return these groups with one of them replaced by a group of `by`."""
        places = [by.places[other] if i == group else p for i, p in enumerate(self.places)]
        return DrawnGroups(
            places,
            swapped(self.episodes, group, by.episodes, other, size=size),
            swapped_scores(self.scores, group, by.scores, other, size=size),
        )


def with_truncation(
    scores: SampleScores, episodes: Sequence[Episode], on_truncation: str | float
) -> SampleScores:
    """Return the scores with `on_truncation` applied to episodes that reached a limit."""
    if on_truncation == "score":
        return scores

    def taken(total: float | None, episode: Episode) -> float | None:
        if total is None or not episode.truncated:
            return total
        return None if isinstance(on_truncation, str) else total + on_truncation

    totals = [taken(t, e) for t, e in zip(scores.total, episodes, strict=True)]
    return scores._replace(total=totals)


class CreditedEpisodes(NamedTuple):
    """The step as a batch, and the advantages for the record."""

    credited: Credited
    advantages: list[float | None]
    """The advantage of each episode: the mean over its tokens, before `loss_aggregation` weights
    them."""
    by_turn: list[list[float] | None]
    """The advantage of each turn of each episode."""


def credit_episodes(
    policy: Policy, config: VeRLConfig, episodes: Sequence[Episode], scores: SampleScores
) -> CreditedEpisodes:
    """Give every token that the policy sampled in the episodes its advantage."""
    reward, valid = grouped(scores.total, config.group_size)
    kept = valid.flatten().nonzero()[:, 0].tolist()
    # Episodes without a reward are left out here, so the rows hold only the others.
    streams = [episodes[i].streams for i in kept]
    if not any(streams):
        empty = [None] * len(episodes)
        return CreditedEpisodes(Credited(None, {}, flat=True), [*empty], [*empty])
    flat = [stream for of_episode in streams for stream in of_episode]
    rows = TrainingRows(
        [
            Rollout(
                token_ids=stream.token_ids,
                mask=stream.mask,
                old_logprob=stream.logprobs,
                prompt_length=beginning,
            )
            for stream, beginning in zip(flat, shared_beginnings(flat), strict=True)
        ],
        [number for number, of_episode in enumerate(streams) for _ in of_episode],
        turns_of(episodes, scores, config.group_size).to(policy.device),
    )
    credited = credit_rows(policy, config, rows, reward=reward, valid=valid)
    assert credited.batch is not None
    weighted = _weighted(credited.batch, config, episodes, kept)
    return CreditedEpisodes(
        credited._replace(batch=weighted), *_recorded(credited.batch, rows, episodes, kept)
    )


def turns_of(episodes: Sequence[Episode], scores: SampleScores, group_size: int) -> Turns:
    """Return the turns of the episodes with their rewards, in tensors.

    The reward of the outcome, which is the total without the step rewards, is one of the last turn.
    """
    longest = max(1, *(len(episode.turns) for episode in episodes))
    reward = torch.zeros(len(episodes), longest, dtype=torch.float64)
    valid = torch.zeros(len(episodes), longest, dtype=torch.bool)
    state = torch.zeros(len(episodes), longest, dtype=torch.long)
    states: dict[tuple[int, ...], int] = {}
    # Rows of all kept episodes, in the order in which `credit_episodes` flattens the streams.
    of_token: list[list[int]] = []
    for i, (episode, total) in enumerate(zip(episodes, scores.total, strict=True)):
        if total is None or not episode.turns:
            continue
        valid[i, : len(episode.turns)] = True
        for k, turn in enumerate(episode.turns):
            # Turns are in the same state if their prompts are equal, token by token.
            state[i, k] = states.setdefault(tuple(turn.prompt_token_ids), len(states))
        for k, given in zip(episode.step_reward_turns, episode.step_rewards, strict=True):
            reward[i, k] += given
        # The total includes the step rewards, which must not count twice.
        # fsum, so that step rewards that sum to the total leave exactly 0.
        reward[i, len(episode.turns) - 1] += total - math.fsum(episode.step_rewards)
        of_token += [
            [t if trains else -1 for t, trains in zip(stream.turn, stream.mask, strict=True)]
            for stream in episode.streams
        ]
    tokens = max(map(len, of_token), default=0)
    padded = torch.tensor([[*row, *[-1] * (tokens - len(row))] for row in of_token])
    axes = (-1, group_size, longest)
    return Turns(padded, reward.view(axes), valid.view(axes), state.view(axes))


def _recorded(
    batch: Batch, rows: TrainingRows, episodes: Sequence[Episode], kept: Sequence[int]
) -> tuple[list[float | None], list[list[float] | None]]:
    """Return the mean advantage of each episode, and of each of its turns, for the record."""
    assert batch.advantage is not None
    assert rows.turns is not None
    sums = [[[0.0, 0] for _ in episodes[i].turns] for i in kept]
    advantage, of_token = batch.advantage.tolist(), rows.turns.of_token.tolist()
    for number, values, turns in zip(rows.sample, advantage, of_token, strict=True):
        for value, turn in zip(values, turns, strict=True):
            if turn >= 0:
                sums[number][turn][0] += value
                sums[number][turn][1] += 1
    means: list[float | None] = [None] * len(episodes)
    by_turn: list[list[float] | None] = [None] * len(episodes)
    for i, turns_sums in zip(kept, sums, strict=True):
        # Rounded for the log only; the batch keeps the exact advantages.
        by_turn[i] = [round(total / max(1, count), 6) for total, count in turns_sums]
        # The mean over tokens, not over turns: a long turn counts more, as it does in the loss.
        tokens = sum(count for _, count in turns_sums)
        means[i] = round(math.fsum(t for t, _ in turns_sums) / tokens, 6) if tokens else None
    return means, by_turn


def _weighted(
    batch: Batch, config: VeRLConfig, episodes: Sequence[Episode], kept: Sequence[int]
) -> Batch:
    """Scale the advantages so that the mean over tokens equals the configured aggregation.

    Every surrogate is linear in a positive factor of the advantage, its clip included, so the
    weight of a token's loss can be put there. A divergence from a teacher takes it from the batch.
    """
    aggregation, advantage = config.loss_aggregation, batch.advantage
    if aggregation not in ("episode", "constant") or advantage is None:
        return batch
    # The divisor of "constant" must not depend on the batch.
    longest = config.max_episode_tokens or config.max_turns * config.max_response_length
    shares = token_weights([episodes[i].streams for i in kept], aggregation, max_tokens=longest)
    trained = int(batch.mask.sum())
    weight = torch.zeros(advantage.shape, dtype=advantage.dtype)
    for row, of_row in enumerate(share for of_episode in shares for share in of_episode):
        weight[row, : len(of_row)] = torch.tensor(of_row, dtype=advantage.dtype)
    # The loss divides by the number of trained tokens, so that factor is multiplied back in.
    weight = weight.to(advantage.device) * trained
    taught = weight if config.algorithm == "distill" else None
    return replace(batch, advantage=advantage * weight, weight=taught)


def _run_share(before: LiveStats, after: LiveStats) -> dict[str, float]:
    """Return the share of the prompt tokens that were run; the prefix cache had the others."""
    asked = after.asked_tokens - before.asked_tokens
    return {"prompt_run_share": (after.run_tokens - before.run_tokens) / asked} if asked else {}
