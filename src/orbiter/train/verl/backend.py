"""The interface of a training backend, and the backend that trains in this process.

The verl backend is in `cluster/backend.py`. This file does not import torch until it trains.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.seeding import sub_random
from orbiter.train.trainer import TrainMetrics
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import RewardSpec, judges_of
from orbiter.train.verl.tasks import AgentTasks, as_tasks

if TYPE_CHECKING:
    from orbiter.train.engine.plan import TrainPlan
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.session import Session
    from orbiter.train.engine.tasks import Tasks
    from orbiter.train.verl.cluster.plan import ClusterPlan
    from orbiter.train.verl.evaluate import ScoredAttempt
    from orbiter.train.verl.teaching import Teach

Validate = Callable[[int], Awaitable[Mapping[str, float]]]


class Backend(ABC):
    """Runs a trainer's training somewhere; `VeRLTrainer` holds one."""

    def __init__(
        self,
        trainer: ModelTrainer,
        config: VeRLConfig,
        rewards: Sequence[RewardSpec],
        gold: RewardSpec | None = None,
    ) -> None:
        self.trainer, self.config, self.rewards, self.gold = trainer, config, rewards, gold

    @abstractmethod
    async def plan(self) -> TrainPlan | ClusterPlan:
        """Return the plan of a run, without starting it."""

    @abstractmethod
    async def train(self) -> TrainMetrics:
        """Train, and return the means of every metric over the last epoch."""

    def load(self) -> Policy | None:
        """Load the trained model if the backend keeps it outside the trainer; else None."""
        return None

    async def save(self, path: Path) -> Path | None:
        """Write the trained model if the backend keeps it in files; None if the trainer must."""
        del path
        return None


class LocalBackend(Backend):
    """Trains in this process."""

    @override
    async def plan(self) -> TrainPlan:
        trainer, config = self.trainer, self.config
        if trainer.running_agent is None:
            plan = await trainer.estimate()
        else:
            plan = await self._plan_agent()
        judges = judges_of(self.rewards)
        if not judges:
            return plan
        # A data set smaller than a batch fills no whole step.
        groups = plan.steps * min(config.batch_size, plan.items)
        calls = groups * sum(judge.calls_for(config.group_size) for judge in judges.values())
        limits = [judge.max_cost for judge in judges.values()]
        # One judge without a limit makes the total unknown.
        cost = None if None in limits else math.fsum(limit for limit in limits if limit is not None)
        return replace(plan, judge_calls=calls, judge_max_cost=cost)

    async def _plan_agent(self) -> TrainPlan:
        """Play a few episodes and estimate a run of an agent from them."""
        trainer = self.trainer
        from orbiter.train.verl.play import PlaySetting
        from orbiter.train.verl.rehearsal import plan_agent

        policy = await trainer.policy()
        held_out = 0 if trainer.eval_dataset is None else len(as_tasks(trainer.eval_dataset))
        free = [reward for reward in self.rewards if reward.judge is None]  # a judge costs money
        return await plan_agent(
            PlaySetting(policy, self.config, trainer.running_agent, free),
            as_tasks(trainer.dataset),
            held_out=held_out,
            method=trainer.method,
        )

    @override
    async def train(self) -> TrainMetrics:
        policy = await self.trainer.policy()
        from orbiter.train.verl.teaching import teaching

        # Opened before the run's folder, so that an endpoint that cannot teach leaves no trace.
        async with teaching(self.config, policy) as teach:
            if self.trainer.running_agent is not None:
                return await self._train_agent(policy, teach)
            return await self._train_answers(policy, teach)

    @asynccontextmanager
    async def _judging(self) -> AsyncIterator[None]:
        """Keep the judges' answers in the run's folder, and note the uncalibrated ones there."""
        from orbiter.train.judging.calibration import uncalibrated
        from orbiter.train.runlog.alarms import keep_notes
        from orbiter.train.verl.judged import kept

        judges, folder = judges_of(self._scorers), self.config.output_dir
        async with kept(judges, folder):
            if judges and folder is not None:
                keep_notes(folder, uncalibrated(judges))
            yield

    @property
    def _scorers(self) -> list[RewardSpec]:
        """The rewards, and gold."""
        return [*self.rewards, *([] if self.gold is None else [self.gold])]

    async def _watched(
        self,
        session: Session,
        validate: Validate,
        tasks: Tasks,
        measure: Callable[[Any, Sequence[RewardSpec], int], Awaitable[list[ScoredAttempt]]],
    ) -> Validate:
        """Return a function for the loop to call after every step: validation, and gold.

        Gold is measured once before the first step: a reward that is easily gamed may be gamed
        after one step already, and then later measurements alone would show no change.

        Args:
            session: The run.
            validate: The validation alone.
            tasks: The held-out tasks; a part of them is taken.
            measure: Answers tasks a number of times (0: once, greedily) and scores the answers.
        """
        gold, config = self.gold, self.config
        if gold is None:
            return validate
        from orbiter.train.verl.gold import GoldWatch

        places = sorted(
            # Drawn from the seed, so that every measurement and every resumed run uses the same
            # slice.
            sub_random(config.seed, "gold").sample(
                range(len(tasks)), min(len(tasks), config.gold_tasks)
            )
        )
        chosen = tasks.select(places)
        # Sampled, since a change shows in samples long before the likeliest answer is another one.
        # A relative reward compares samples, so it needs a whole group.
        relative = any(reward.relative for reward in self.rewards)
        samples = config.group_size if relative else config.gold_samples
        # The proxy is the total, which has to stay what the run is trained by.
        scorers = [*self.rewards, replace(gold, weight=0.0)]  # measured, but not in the total
        watch = GoldWatch(
            name=gold.name,
            every=config.gold_every,
            stop=config.gold_stop,
            measure=lambda: measure(chosen, scorers, samples),
        )
        # A resumed run has its measurements in the checkpoint.
        if not session.position.gold and session.position.step == 0:
            await watch.after(session, 0)

        async def after(step: int) -> Mapping[str, float]:
            return {**await validate(step), **await watch.after(session, step)}

        return after

    async def _train_answers(self, policy: Policy, teach: Teach | None) -> TrainMetrics:
        """Train on answers to prompts."""
        trainer, config = self.trainer, self.config
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.verl.evaluate import attempts_of, judge, summary
        from orbiter.train.verl.judged import usage
        from orbiter.train.verl.local import Prompts, RewardJob, fit
        from orbiter.train.verl.teaching import target_answers, with_divergence

        tasks = held_out = await trainer.encode(trainer.dataset)
        if trainer.eval_dataset is not None:
            held_out = await trainer.encode(trainer.eval_dataset)
        per_epoch = tasks.steps_per_epoch(config.batch_size)
        opening = self._opening(policy, tasks, config.epochs * per_epoch)
        answers = await work(target_answers, config, policy.tokenizer, tasks)
        session = await work(Session, config, policy, tasks, steps_per_epoch=per_epoch)
        session.also_timed = partial(usage, judges_of(self._scorers))
        # A relative reward has no meaning for a single greedy answer, so validation leaves it
        # out.
        absolute = [reward for reward in self.rewards if not reward.relative]

        async def measure() -> Mapping[str, float]:
            judged = await judge(policy, config, absolute, held_out, samples=0)
            measured = summary(judged, len(held_out), success=1.0)
            return (await with_divergence(config, policy, teach, held_out, measured)).measured()

        async def measure_gold(
            chosen: Tasks, scorers: Sequence[RewardSpec], samples: int
        ) -> list[ScoredAttempt]:
            judged = await judge(policy, config, scorers, chosen, samples=samples)
            outputs = [rollout.text for rollout in judged.rollouts]
            return attempts_of(chosen.items, outputs, judged.scores)

        def score(measured: Mapping[str, float]) -> float:
            # A run by a teacher may have no reward.
            # Negative, since the best checkpoint is the one with the highest score.
            return measured["reward"] if "reward" in measured else -measured["divergence"]

        validate = trainer.validation(session, measure, score)
        # Entered in this order: the judges' files are closed before the session, which saves
        # last.
        async with (
            trainer.running(session, opening, data=f"{len(tasks)} prompts") as progress,
            self._judging(),
        ):
            job = RewardJob(
                config=config,
                source=Prompts(
                    config=config, rewards=self.rewards, tasks=tasks, teach=teach, answers=answers
                ),
                objective=ALGORITHMS[config.algorithm].objective(config),
                session=session,
                progress=progress,
                validate=await self._watched(session, validate, held_out, measure_gold),
            )
            await fit(job)
        return trainer.results()

    async def _train_agent(self, policy: Policy, teach: Teach | None) -> TrainMetrics:
        """Train on the episodes of an agent."""
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.verl.episodes import objective_of, playing
        from orbiter.train.verl.journal import remove_covered
        from orbiter.train.verl.judged import usage
        from orbiter.train.verl.local import RewardJob, fit
        from orbiter.train.verl.play import PlaySetting, assess, evaluate

        trainer, config = self.trainer, self.config
        setting = PlaySetting(policy, config, trainer.running_agent, self.rewards)
        tasks = as_tasks(trainer.dataset)
        held_out = tasks if trainer.eval_dataset is None else as_tasks(trainer.eval_dataset)
        per_epoch = tasks.steps_per_epoch(config.batch_size)
        session = await work(Session, config, policy, tasks, steps_per_epoch=per_epoch)
        session.also_timed = partial(usage, judges_of(self._scorers))
        absolute = [reward for reward in self.rewards if not reward.relative]

        async def measure() -> Mapping[str, float]:
            chosen = setting._replace(rewards=absolute)
            return (await evaluate(chosen, held_out, samples=0, success=1.0)).measured()

        async def measure_gold(
            chosen: AgentTasks, scorers: Sequence[RewardSpec], samples: int
        ) -> list[ScoredAttempt]:
            played = setting._replace(rewards=scorers)
            return (await assess(played, chosen, samples=samples, success=1.0)).attempts

        validate = trainer.validation(session, measure, lambda result: result["reward"])
        opening = self._opening_of_agent(policy, len(tasks), config.epochs * per_epoch)
        async with (
            trainer.running(session, opening, data=f"{len(tasks)} tasks") as progress,
            playing(setting, tasks, teach) as source,
            self._judging(),
        ):
            job = RewardJob(
                config=config,
                source=source,
                objective=objective_of(config),
                session=session,
                progress=progress,
                validate=await self._watched(session, validate, held_out, measure_gold),
            )
            await fit(job)
            # Only after the loop, when the last checkpoint is known to cover these steps.
            remove_covered(session)
        return trainer.results()

    def _opening_of_agent(self, policy: Policy, tasks: int, total: int) -> list[str]:
        """Return the lines shown at the start of a run with an agent."""
        from orbiter.train.engine.memory import memory_estimate

        config = self.config
        at_once = min(config.batch_size, tasks)
        context = policy.context_length
        estimate = memory_estimate(
            policy,
            prompts=at_once,
            n=config.group_size,
            # Prompts and answers of an episode grow into one sequence, so all of it counts as
            # sampled.
            prompt_tokens=1,
            new_tokens=min(config.max_episode_tokens or context, context) - 1,
            micro_batch_tokens=config.micro_batch_tokens,
            teacher=None if config.distills_sampled else policy.teacher,
        )
        size = (
            f"{self.trainer.method} of {config.model} with an agent: {tasks} tasks, {total} steps "
            f"of {at_once} tasks x {config.group_size} episodes"
        )
        longest = f"memory if every episode had the maximum length: {estimate}"
        return [size, longest, *ALGORITHMS[config.algorithm].opening()]

    def _opening(self, policy: Policy, tasks: Tasks, total: int) -> list[str]:
        """Return the lines shown at the start of a run: size, memory, notes on the algorithm."""
        from orbiter.train.engine.memory import memory_estimate

        config = self.config
        prompts = min(config.batch_size, len(tasks))
        estimate = memory_estimate(
            policy,
            prompts=prompts,
            n=config.group_size,
            prompt_tokens=max(len(prompt) for prompt in tasks.prompts),
            new_tokens=config.max_response_length,
            micro_batch_tokens=config.micro_batch_tokens,
            teacher=None if config.distills_sampled else policy.teacher,
        )
        size = (
            f"{self.trainer.method} of {config.model}: {len(tasks)} prompts, {total} steps of "
            f"{prompts} prompts x {config.group_size} samples"
        )
        return [size, f"memory: {estimate}", *ALGORITHMS[config.algorithm].opening()]
