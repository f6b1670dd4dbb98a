"""VeRLTrainer: better weights by reward, on this machine or on verl's workers.

Left out: the loop (`local.py`), the job for verl (`cluster.py`), and the model with its files
(`engine/trainer.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from orbiter.train.engine.trainer import as_metrics
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation import mean_interval, pass_at_k
from orbiter.train.trainer import TrainerState, TrainMetrics
from orbiter.train.trainer.config import whole
from orbiter.train.verl.cluster.trainer import ClusterTrainer
from orbiter.train.verl.config import VeRLAlgorithm, VeRLConfig
from orbiter.train.verl.reward import RewardSpec

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.progress import Progress
    from orbiter.train.engine.tasks import Tasks
    from orbiter.train.verl.local import Judged

NEAR_ZERO = (
    "GRPO's loss is near 0 by construction while the policy is the one that sampled: the "
    "advantages of a group sum to 0, and only unequal lengths leave a rest. Watch reward, KL, "
    "entropy and gradient norm instead"
)


class VeRLTrainer(ClusterTrainer):
    """Trains a language model by reward, with PPO or GRPO.

    `dataset` is a TrajectoryDataset, a list of TrajectoryItem or a list of prompts. The model
    answers each item's `state` (its `messages`, where it has any); the rewards judge the answer.
    """

    def __init__(
        self,
        config: VeRLConfig | None = None,
        rewards: Sequence[RewardSpec] = (),
        *,
        dataset: object = None,
        eval_dataset: object = None,
        agent: object = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Take what to train by; nothing is loaded before it is needed.

        Args:
            config: How the run goes; absent means `VeRLConfig()`.
            rewards: What an output is worth: the sum of weight · fn(output).
            dataset: The tasks; may also be given to `train()`.
            eval_dataset: Held-out tasks, for `eval_every` and `evaluate()`.
            agent: An object whose `instructions` become the system prompt.
            on_state_change: Called with the old and the new state of the lifecycle.
        """
        super().__init__(
            VeRLConfig() if config is None else config,
            dataset=dataset,
            eval_dataset=eval_dataset,
            agent=agent,
            on_state_change=on_state_change,
        )
        self.rewards = tuple(rewards)
        self.method = self.config.algorithm.upper()

    async def check_reward(self) -> bool:
        """Make sure that there are rewards, told apart by name, and that one of them counts."""
        if not self.rewards:
            raise ConfigError("rewards is empty: give at least one RewardSpec(name=..., fn=...)")
        for reward in self.rewards:
            if not isinstance(reward, RewardSpec):
                raise ConfigError(
                    f"rewards must hold RewardSpec(name=..., fn=...), got {type(reward).__name__}"
                )
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ConfigError(f"each reward needs a name of its own, got {names}")
        if not any(reward.weight for reward in self.rewards):
            raise ConfigError("every reward has weight 0, so every output would be worth the same")
        return True

    async def train(self, dataset: object = None) -> TrainMetrics:  # noqa: ARG002 - the lifecycle takes it
        """Train, and return the means of every metric over the last epoch.

        Raises:
            TrainingError: the run diverged, or there was nothing to learn from.
            CallbackError: a reward failed, and `on_reward_error` is "raise".
            DataError: a prompt does not fit, and `on_long_prompt` is "error".
            MissingExtraError: the backend is "verl", and its interpreter lacks it.
        """
        if self.config.backend == "verl":
            return await self._train_on_verl()
        policy = await self.policy()
        from orbiter.train.engine.session import Session, work
        from orbiter.train.verl.local import Job, fit

        config = self.config
        tasks = await self._tasks(self.dataset)
        held_out = None if self.eval_dataset is None else await self._tasks(self.eval_dataset)
        per_epoch = tasks.steps_per_epoch(config.batch_size)
        opening = self._opening(policy, tasks, config.epochs * per_epoch)
        session = await work(Session, config, policy, tasks, steps_per_epoch=per_epoch)
        self._data = f"{len(tasks)} prompts"

        async def measure() -> Mapping[str, float]:
            return (await self._judge(held_out or tasks, samples=0)).measured()

        def loop(progress: Progress) -> Awaitable[None]:
            job = Job(
                config=config,
                rewards=self.rewards,
                tasks=tasks,
                session=session,
                progress=progress,
                validate=self._validation(session, measure, lambda measured: measured["reward"]),
            )
            return fit(job)

        return await self._learn(session, opening, loop)

    async def evaluate(
        self, dataset: object = None, *, samples: int = 0, success: float = 1.0
    ) -> TrainMetrics:
        """Answer held-out tasks and say what that is worth, with a 95 % interval over the tasks.

        Args:
            dataset: The tasks; absent means `eval_dataset`, else the data trained on.
            samples: 0 answers greedily, once; k draws k answers at the config's temperature and
                measures pass@1 and pass@k.
            success: The total reward from which an answer counts as passed.
        """
        whole("samples", samples, at_least=0)
        chosen = next(
            (d for d in (dataset, self.eval_dataset, self.dataset) if d is not None), None
        )
        if chosen is None:
            raise DataError("there is nothing to evaluate on; give evaluate() a data set")
        await self.check_reward()
        return await self._judge(await self._tasks(chosen), samples=samples, success=success)

    async def _judge(self, tasks: Tasks, *, samples: int, success: float = 1.0) -> TrainMetrics:
        from orbiter.train.verl.local import judge

        judged = await judge(await self.policy(), self.config, self.rewards, tasks, samples=samples)
        return summary(judged, len(tasks), success=success)

    def _policy_parts(self) -> dict[str, Any]:
        """PPO needs a value head, and a KL something to measure it from."""
        ppo = self.config.algorithm is VeRLAlgorithm.PPO
        return {"value_head": ppo, "reference": self.config.kl_coef > 0}

    def _opening(self, policy: Policy, tasks: Tasks, total: int) -> list[str]:
        """Say what is about to happen, and what memory it takes."""
        from orbiter.train.engine.memory import memory_estimate

        config = self.config
        asked = min(config.batch_size, len(tasks))
        estimate = memory_estimate(
            policy,
            prompts=asked,
            n=config.group_size,
            prompt_tokens=max(len(prompt) for prompt in tasks.prompts),
            new_tokens=config.max_response_length,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        plan = (
            f"{self.method} of {config.model}: {len(tasks)} prompts, {total} steps of {asked} "
            f"prompts x {config.group_size} samples"
        )
        lines = [plan, f"memory: {estimate}"]
        return lines if config.algorithm is VeRLAlgorithm.PPO else [*lines, NEAR_ZERO]


def summary(judged: Judged, tasks: int, *, success: float) -> TrainMetrics:
    """Put an evaluation into numbers; tasks are what the interval is over, not their samples.

    Raises:
        DataError: every sample was skipped, since its rewards failed.
    """
    from orbiter.train.verl.local import length_metrics, reward_metrics

    total = judged.scores.total
    n = len(total) // tasks
    groups = [[t for t in total[at : at + n] if t is not None] for at in range(0, len(total), n)]
    known = [group for group in groups if group]
    if not known:
        raise DataError("nothing was scored: the rewards failed on every output")
    interval = mean_interval([fmean(group) for group in known])
    measured = reward_metrics(judged.scores) | length_metrics(judged.rollouts)
    for k in sorted({1, n} if n > 1 else set()):
        complete = [group for group in known if len(group) == n]
        passed = [pass_at_k(n, sum(t >= success for t in group), k) for group in complete]
        if passed:
            measured[f"pass@{k}"] = fmean(passed)
    return as_metrics(measured | {"reward": interval.mean}, reward_interval=interval)
