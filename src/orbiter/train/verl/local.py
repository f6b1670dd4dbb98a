"""The training loop in this process: each step samples, scores, assigns credit and updates.

`fit` is the loop; where its samples come from is a `SampleSource`: answers to prompts here,
episodes of an agent in `episodes.py`. Loading, checks and the lifecycle are in `trainer.py`, credit
assignment in `credit.py` and `algorithms/`, every formula in `rl/`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from orbiter.train.engine.batch import Batch, minibatches
from orbiter.train.engine.progress import line_of
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.sample import sample
from orbiter.train.engine.session import Session, TrainingJob
from orbiter.train.engine.tasks import Tasks
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import Objective
from orbiter.train.errors import TrainingError
from orbiter.train.seeding import sub_seed
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.algorithms.base import Credited
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.credit import credit
from orbiter.train.verl.evaluate import ask_rewards, length_metrics, reward_metrics
from orbiter.train.verl.extra_groups import (
    flat_groups,
    swapped,
    swapped_scores,
    without_flat,
)
from orbiter.train.verl.guard import signs, watch
from orbiter.train.verl.overlong import with_overlong_penalty
from orbiter.train.verl.pools import choose, pool_metrics, update_pools
from orbiter.train.verl.reward import RewardSpec, SampleScores, weights_of
from orbiter.train.verl.samples import sample_records
from orbiter.train.verl.teaching import (
    Teach,
    own_answers,
    with_answers,
    with_teacher,
    without_reward,
)

log = logging.getLogger(__name__)


class SampleSource(Protocol):
    """A source of the samples of a step."""

    async def draw(self, session: Session, step: int) -> None:
        """Put the credited samples of a step into the session, with their metrics."""

    async def refresh(self) -> None:
        """Use the new weights, after the updates of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts(SampleSource):
    """Answers to prompts, scored by rewards."""

    config: VeRLConfig
    rewards: Sequence[RewardSpec]
    tasks: Tasks
    teach: Teach | None = None
    """The teacher's log probabilities of sampled tokens; None unless distillation needs them."""
    answers: Sequence[list[int]] | None = None
    """The data's answer to each task, if distillation learns on them too."""

    @override
    async def draw(self, session: Session, step: int) -> None:
        config, tasks, position = self.config, self.tasks, session.position
        turn = choose(config, position, step, len(tasks))
        own = own_answers(config, step, turn.places)
        asked = [place for place, mine in zip(turn.places, own, strict=True) if mine]
        drawn = await self._answers(session, step, asked, 0)

        async def more(places: list[int], before: int) -> ScoredSamples:
            # Counted after these groups, which is what the seeds of extra samples are made from.
            return await self._answers(session, step, places, before + len(places))

        chosen, extra = await without_flat(
            config, position, step, drawn, more, first=asked, of=len(tasks)
        )
        # Shaped rewards feed the advantages; pools and metrics below see the unshaped ones.
        shaped = with_overlong_penalty(config, chosen.scores, chosen.rollouts)
        given = [place for place, mine in zip(turn.places, own, strict=True) if not mine]
        rollouts, scores = self._with_targets(given, chosen.rollouts, shaped.scores)
        credited = await work(credit, session.policy, config, rollouts, scores)
        credited = await with_teacher(self.teach, credited)
        # Set only after the samples are credited: an interrupted step starts from the old cursor.
        position.cursor = turn.cursor
        update_pools(config, position, turn.places, drawn.scores.total)
        metrics = pool_metrics(config, position, turn, len(tasks)) | extra
        if drawn.items:  # else all answers of the step are the data's
            metrics = self._measured(session, drawn, credited) | metrics
        records = await work(sample_records, *chosen, credited.batch) if drawn.items else []
        await work(note, session, credited, metrics, records)

    def _measured(
        self, session: Session, drawn: ScoredSamples, credited: Credited
    ) -> dict[str, float]:
        """Return the metrics of the step's own samples, and warn of what they show."""
        config = self.config
        metrics = {
            **reward_metrics(drawn.scores),
            **credited.metrics,
            **length_metrics(drawn.rollouts),
            **with_overlong_penalty(config, drawn.scores, drawn.rollouts).metrics,
        }
        if not self.rewards:
            metrics = without_reward(metrics)
        hints = signs(
            [rollout.text for rollout in drawn.rollouts],
            [sum(rollout.mask) for rollout in drawn.rollouts],
            drawn.scores.total,
            config.group_size,
        )
        watch(session.position, metrics | hints, weights_of(self.rewards))
        return metrics

    def _with_targets(
        self, places: Sequence[int], rollouts: Sequence[Rollout], scores: SampleScores
    ) -> tuple[Sequence[Rollout], SampleScores]:
        """Add the data's answers to these tasks, which the policy did not answer, as groups."""
        if self.answers is None:
            return rollouts, scores
        targets = [
            (self.tasks.prompts[place], self.answers[place])
            for place in places
            # As many copies as a group has samples, so that the share is one of all samples.
            for _ in range(self.config.group_size)
        ]
        return with_answers(scores, rollouts, targets)

    async def _answers(
        self, session: Session, step: int, places: Sequence[int], extra: int
    ) -> ScoredSamples:
        """Answer these tasks, with which the step has `extra` groups beyond its own."""
        config, chosen = self.config, self.tasks.select(places)
        if not places:
            return ScoredSamples([], [], SampleScores([], {}, 0))
        rollouts = await work(
            sample,
            session.policy,
            chosen.prompts,
            n=config.group_size,
            max_new_tokens=config.max_response_length,
            temperature=config.temperature,
            # Derived from the step, so that a run resumed before this step draws the same
            # samples.
            seed=sub_seed(config.seed, "sample", step, *([extra] if extra else [])),
        )
        scores = await ask_rewards(config, self.rewards, chosen.items, rollouts)
        return ScoredSamples(chosen.items, rollouts, scores)

    @override
    async def refresh(self) -> None:
        """Do nothing: `sample` reads the current weights each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardJob(TrainingJob):
    """The parts that a run by reward needs."""

    config: VeRLConfig
    source: SampleSource
    objective: Objective
    """What an update minimises."""


async def fit(job: RewardJob) -> None:
    """Train for `epochs` passes, or until there is nothing left to learn.

    Raises:
        TrainingError: the run diverged, or never had anything to learn from.
        CallbackError: a reward failed, and `on_reward_error` is "raise".
    """
    config, session = job.config, job.session
    row: dict[str, float] = {}
    for step in range(session.position.step, session.steps):
        if session.batch is None:  # a run resumed inside a step has its samples already
            await job.source.draw(session, step)
        updates = updates_left(session, config, step)
        # `next` runs the generator's body, which touches tensors, so it runs on the engine's
        # thread.
        while (minibatch := await work(next, updates, None)) is not None:
            # Inside a step too: the checkpoint has the samples, so a resumed run continues with
            # this minibatch.
            if session.save_due:
                await work(session.save)
            await work(session.take, minibatch, job.objective, temperature=config.temperature)
        # After the last update of the step, so that one step's samples come from one set of
        # weights.
        await job.source.refresh()
        row = session.finish_step(await job.validate(step + 1))
        job.progress.update(step + 1, line_of(row))
        check_gradient(session, row, config.max_flat_steps)
        if session.save_due:
            await work(session.save)
        if session.position.flat_steps >= config.max_flat_steps:
            stop_without_signal(session, row)
            return
        if session.out_of_time:
            break
    if row and not session.position.has_taught:
        warn_of_no_signal(session, row)


class ScoredSamples(NamedTuple):
    """The samples of a step with their scores; they come in groups, one group for each item."""

    items: Sequence[TrajectoryItem]
    rollouts: Sequence[Rollout]
    scores: SampleScores

    def flat(self, config: VeRLConfig) -> list[int]:
        """Return the groups whose rewards, with the penalty for length, do not differ."""
        shaped = with_overlong_penalty(config, self.scores, self.rollouts)
        return flat_groups(shaped.scores.total, config.group_size)

    def replaced(self, group: int, by: ScoredSamples, other: int, *, size: int) -> ScoredSamples:
        """Return these groups with one of them replaced by a group of `by`."""
        return ScoredSamples(
            swapped(self.items, group, by.items, other, size=1),
            swapped(self.rollouts, group, by.rollouts, other, size=size),
            swapped_scores(self.scores, group, by.scores, other, size=size),
        )


def note(
    session: Session,
    credited: Credited,
    metrics: dict[str, float],
    records: list[dict[str, Any]],
) -> None:
    """Put the credited samples into the session, with their metrics and records."""
    position = session.position
    session.batch = credited.batch
    # A step without any reward counts as flat as well.
    position.flat_steps = position.flat_steps + 1 if credited.flat else 0
    position.has_taught |= not credited.flat
    position.row = metrics
    position.samples = records


def updates_left(session: Session, config: VeRLConfig, step: int) -> Iterator[Batch]:
    """Yield the minibatches of the step that have not been used yet, pass after pass.

    Ends early once an update measured a KL above `target_kl` from the sampling policy.
    """
    batch, position = session.batch, session.position
    if batch is None:
        return
    size = config.minibatch_size or len(batch.length)
    # The minibatches are cut again from the seed, and those already used are skipped.
    position_in_step = 0
    for epoch in range(config.ppo_epochs):
        seed = sub_seed(config.seed, "minibatches", step, epoch)
        for minibatch in minibatches(batch, size, seed=seed):
            # An update whose rows were all idle computes nothing and measures no KL.
            # The KL is that of the last update taken, also if it was taken before a restart.
            moved = position.seen[-1].get("approx_kl", 0.0) if position.seen else 0.0
            if config.target_kl is not None and moved > config.target_kl:
                return
            position_in_step += 1
            if position_in_step > position.within:
                yield minibatch


def check_gradient(session: Session, row: Mapping[str, float], patience: int) -> None:
    """Detect a model that no longer moves although its samples got different rewards.

    Raises:
        TrainingError: the gradient has been exactly zero for `patience` such steps.
    """
    position = session.position
    if row.get("divergence") == 0 and row.get("grad_norm") == 0:
        raise TrainingError(
            "nothing can be learned: the teacher's distribution is exactly the policy's on every "
            "token (divergence 0); give another model as teacher="
        )
    # Equal rewards also give a zero gradient, which is no divergence.
    still = position.flat_steps == 0 and row.get("grad_norm") == 0
    position.still_steps = position.still_steps + 1 if still else 0
    if position.still_steps >= patience:
        raise TrainingError(
            f"the run has diverged: for {patience} steps the gradient was zero although samples of "
            f"a prompt got different rewards, so the weights of step {position.step} are too large "
            "for the arithmetic; lower learning_rate"
        )


def stop_without_signal(session: Session, row: Mapping[str, float]) -> None:
    """End a run whose samples have all got the same reward for too long.

    Raises:
        TrainingError: they never got different rewards, so nothing has been learned.
    """
    steps, reward = session.position.flat_steps, _last_reward(row)
    if session.position.has_taught:
        log.warning(
            "stopped at step %d: in the last %d steps every sample got the same reward (%s), so "
            "there is nothing left to learn from these rewards",
            *(session.position.step, steps, reward),
        )
        return
    raise TrainingError(
        f"nothing can be learned: in all {steps} steps so far every sample of a prompt got the "
        f"same reward (most recently {reward}), so every advantage is zero. Use a reward that "
        f"distinguishes better from worse answers (partial credit), sample more (group_size, "
        f"temperature), start "
        "with easier prompts or with SFT; max_flat_steps sets the number of such steps"
    )


def warn_of_no_signal(session: Session, row: Mapping[str, float]) -> None:
    """Warn at the end of a run, too short to be stopped, whose samples never differed in reward."""
    log.warning(
        "nothing was learned: in none of the %d steps did two samples of a prompt get different "
        "rewards (most recently %s)%s",
        *(session.position.step, _last_reward(row)),
        # Episodes that all ran into the same limit, or failed, are the usual reason.
        "".join(f"; {name} {n:g}" for name, n in row.items() if name.startswith(_ENDED_EARLY)),
    )


_ENDED_EARLY = ("stopped/", "failed/")
"""Beginnings of the metrics that count episodes by the reason why they ended early."""


def _last_reward(row: Mapping[str, float]) -> str:
    return f"{row['reward']:.4g}" if "reward" in row else "none, every sample was skipped"
