"""The interface of a training backend, and the backend that trains in this process.

The verl backend is in `cluster/backend.py`. This file does not import torch until it trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.trainer import TrainMetrics
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import RewardSpec
from orbiter.train.verl.tasks import as_tasks

if TYPE_CHECKING:
    from orbiter.train.engine.plan import TrainPlan
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.tasks import Tasks
    from orbiter.train.verl.cluster.plan import Plan


class Backend(ABC):
    """Runs a trainer's training somewhere; `VeRLTrainer` holds one."""

    def __init__(
        self, trainer: ModelTrainer, config: VeRLConfig, rewards: Sequence[RewardSpec]
    ) -> None:
        self.trainer, self.config, self.rewards = trainer, config, rewards

    @abstractmethod
    async def plan(self) -> TrainPlan | Plan:
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
        trainer = self.trainer
        if trainer.running_agent is None:
            return await trainer.estimate()
        from orbiter.train.verl.play import Setting
        from orbiter.train.verl.rehearsal import plan_agent

        policy = await trainer.policy()
        held_out = 0 if trainer.eval_dataset is None else len(as_tasks(trainer.eval_dataset))
        return await plan_agent(
            Setting(policy, self.config, trainer.running_agent, self.rewards),
            as_tasks(trainer.dataset),
            held_out=held_out,
            method=trainer.method,
        )

    @override
    async def train(self) -> TrainMetrics:
        trainer, config = self.trainer, self.config
        policy = await trainer.policy()
        if trainer.running_agent is not None:
            return await self._train_agent(policy)
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.verl.evaluate import judge, summary
        from orbiter.train.verl.local import Job, Prompts, fit

        tasks = held_out = await trainer.encode(trainer.dataset)
        if trainer.eval_dataset is not None:
            held_out = await trainer.encode(trainer.eval_dataset)
        per_epoch = tasks.steps_per_epoch(config.batch_size)
        opening = self._opening(policy, tasks, config.epochs * per_epoch)
        session = await work(Session, config, policy, tasks, steps_per_epoch=per_epoch)

        async def measure() -> Mapping[str, float]:
            judged = await judge(policy, config, self.rewards, held_out, samples=0)
            return summary(judged, len(held_out), success=1.0).measured()

        async with trainer.running(session, opening, data=f"{len(tasks)} prompts") as progress:
            job = Job(
                config=config,
                source=Prompts(config=config, rewards=self.rewards, tasks=tasks),
                objective=ALGORITHMS[config.algorithm].objective(config),
                session=session,
                progress=progress,
                validate=trainer.validation(session, measure, lambda result: result["reward"]),
            )
            await fit(job)
        return trainer.results()

    async def _train_agent(self, policy: Policy) -> TrainMetrics:
        """Train on the episodes of an agent."""
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.verl.episodes import objective_of, playing
        from orbiter.train.verl.journal import remove_covered
        from orbiter.train.verl.local import Job, fit
        from orbiter.train.verl.play import Setting, evaluate

        trainer, config = self.trainer, self.config
        setting = Setting(policy, config, trainer.running_agent, self.rewards)
        tasks = as_tasks(trainer.dataset)
        held_out = tasks if trainer.eval_dataset is None else as_tasks(trainer.eval_dataset)
        per_epoch = tasks.steps_per_epoch(config.batch_size)
        session = await work(Session, config, policy, tasks, steps_per_epoch=per_epoch)

        async def measure() -> Mapping[str, float]:
            return (await evaluate(setting, held_out, samples=0, success=1.0)).measured()

        opening = self._opening_of_agent(policy, len(tasks), config.epochs * per_epoch)
        async with (
            trainer.running(session, opening, data=f"{len(tasks)} tasks") as progress,
            playing(setting, tasks) as source,
        ):
            job = Job(
                config=config,
                source=source,
                objective=objective_of(config),
                session=session,
                progress=progress,
                validate=trainer.validation(session, measure, lambda result: result["reward"]),
            )
            await fit(job)
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
            prompt_tokens=1,
            new_tokens=min(config.max_episode_tokens or context, context) - 1,
            micro_batch_tokens=config.micro_batch_tokens,
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
        )
        size = (
            f"{self.trainer.method} of {config.model}: {len(tasks)} prompts, {total} steps of "
            f"{prompts} prompts x {config.group_size} samples"
        )
        return [size, f"memory: {estimate}", *ALGORITHMS[config.algorithm].opening()]
